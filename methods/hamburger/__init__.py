"""HAMburger (arXiv 2505.20438): several tokens smashed into one KV slot."""
