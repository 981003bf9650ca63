"""History: runs over time, and shifts between them."""
