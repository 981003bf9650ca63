"""The runner: from a request to a run folder."""
