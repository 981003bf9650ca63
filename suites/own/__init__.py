"""Prompts of one's own as a suite: rows of a file or folder (:mod:`.files`) become questions (:mod:`.questions`)."""
