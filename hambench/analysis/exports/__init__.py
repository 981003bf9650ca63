"""A run in the forms of others: tidy frames, and the samples of lm-eval."""
