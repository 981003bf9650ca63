"""Runs a request: expands its cells, decodes every sample and writes the run folder."""
