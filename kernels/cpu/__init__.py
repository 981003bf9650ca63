"""A whole forward of a Llama on a CPU in one native call.

The C++ source is part of the package. :func:`load_library` compiles it on first use and caches the result.
:class:`~hambench.kernels.cpu.model.NativeModel` packs a model's weights and runs forwards over KV caches in place.
docs/adr/0015 explains the kernels' design.
"""
