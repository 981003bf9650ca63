"""The judgement of HAMburger weights, and their card."""
