"""What sessions ask of models, and batches of sequences that share the answers."""
