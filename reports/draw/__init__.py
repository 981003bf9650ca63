"""Drawing: figures, labels, colours and SVG."""
