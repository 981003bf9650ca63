"""History: runs over time, and whether they shifted."""
