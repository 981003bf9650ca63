"""Training of HAMburger weights: stages, losses and the run folder."""
