"""The computer: its identity, its load, its memory bandwidth and its GPU."""
