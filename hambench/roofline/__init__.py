"""The roofline: bytes per token of each method, and the speed that the hardware allows."""
