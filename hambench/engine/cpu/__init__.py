"""The same forward on a CPU in one native call: compiled kernels, threads of their own, KV caches in place."""
