"""Triton kernels, imported only when an op dispatches to them.

Names: `p_` pointer, `b_` block, `o_` offsets, `i_` program index, capitals for constexpr. Kernels widen every load to
float32 before arithmetic and use constexpr bounds or `while` loops. They round bf16 results with
:func:`hambench.kernels.fused._rows.cast`, because Triton's interpreter computes bf16 wrongly and truncates bf16 stores.
"""
