"""What a run will take: foretold before it begins, and again while it goes on."""
