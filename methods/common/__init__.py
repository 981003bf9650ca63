"""Parts that several methods share: the target's sequence, sampling, drafting and verification."""
