"""Triton kernels, imported only when an op dispatches to them.

Names: `p_` pointer, `b_` block, `o_` offsets, `i_` program index, capitals for constexpr. Every load is widened to
float32 before arithmetic, loop bounds are constexpr or `while` loops, and bf16 results are rounded by
:func:`hambench.kernels.fused._rows.cast`: Triton's interpreter computes bf16 wrongly and truncates bf16 stores.
"""
