"""HAMburger's greedy macro-step on the device."""
