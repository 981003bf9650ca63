"""Training data for HAMburger: prompts, answers, windows and segments."""
