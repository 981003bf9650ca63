"""Decoding methods, one per file: a config of knobs and a session that owns one step."""
