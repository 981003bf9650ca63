"""Cost of asking for forwards through a generator, next to loops that call the model directly."""
