"""Triton kernels, imported only when an op dispatches to them."""
