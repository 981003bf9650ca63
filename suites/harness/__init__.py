"""lm-eval's tasks and metrics, made to run here."""
