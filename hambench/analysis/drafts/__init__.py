"""Drafts of a run: acceptance by place, what they cost and can gain, and drafters replayed on stored answers."""
