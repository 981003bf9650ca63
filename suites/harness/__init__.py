"""Runs lm-eval's tasks and metrics offline and repeatably."""
