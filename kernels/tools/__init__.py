"""Tools for kernels: shapes, benchmarks and the ahead-of-time gate."""
