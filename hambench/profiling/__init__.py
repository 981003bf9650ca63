"""Profiling: the time and memory of one answer, by phase and step."""
