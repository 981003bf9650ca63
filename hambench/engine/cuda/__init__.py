"""The same forward on a GPU: fused kernels, CUDA graphs, and chains that stop early."""
