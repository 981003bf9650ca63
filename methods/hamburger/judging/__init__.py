"""Held-out figures of HAMburger weights."""
