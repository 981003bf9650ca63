"""The sandbox that runs programs a model wrote."""
