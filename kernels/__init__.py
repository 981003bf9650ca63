"""Plain-torch reference ops and their fused Triton versions: a leaf, importing nothing of hambench."""
