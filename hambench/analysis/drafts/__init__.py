"""Drafts of a run: acceptance by position, their costs and possible gain, and replay on stored answers."""
