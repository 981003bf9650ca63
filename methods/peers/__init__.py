"""Peers: engines other than this one, measured under the same harness."""
