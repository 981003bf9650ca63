"""Profiling: where the time and the memory of one answer go."""
