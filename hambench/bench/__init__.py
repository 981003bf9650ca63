"""Benchmarks of hambench's own parts; ``hambench bench X`` is ``bench/X.py``."""
