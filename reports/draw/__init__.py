"""Draws figures: canvas, labels, colours and SVG."""
