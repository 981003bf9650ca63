"""Peers: other engines, measured with the same harness."""
