"""What a reader must know of a run before believing its numbers, found in its records."""
