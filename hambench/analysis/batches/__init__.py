"""Answers that were decoded in batches: their figures and curves."""
