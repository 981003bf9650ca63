"""Decoding methods, one per file, each with a config of knobs and a session that performs the steps."""
