"""Decoding kernels: plain-torch reference ops with fused Triton versions; imports nothing of hambench.

Each file holds one op and has the name of its public function. `impl="auto" | "reference" | "fused"` chooses:

- `auto`: fused on a CUDA device of compute capability 8.0 or later if the op supports the arguments, else the
  reference (a CUDA device that falls back logs one line);
- `fused`: the Triton kernel, or a `ValueError` with the reason. On a CPU it runs under `TRITON_INTERPRET=1` only;
- `reference`: the definition, in float32, on any device.

| op | computes |
|---|---|
| :func:`~hambench.kernels.norm_gemv.norm_gemv` | (embedding row) → RMSNorm → `W x`, bf16 or INT8 weights |
| :func:`~hambench.kernels.norm_gateup_silu.norm_gateup_silu` | RMSNorm → `silu(Wg x) * (Wu x)` |
| :func:`~hambench.kernels.gemv_residual.gemv_residual` | `residual + W x` |
| :func:`~hambench.kernels.micro_attention.micro_attention` | RoPE, append, attention over at most 8 keys |
| :func:`~hambench.kernels.decode_attention.decode_attention` | RoPE, append, attention over all; slot ≠ position |
| :func:`~hambench.kernels.lm_head_argmax.lm_head_argmax` | greedy token of each row, no logits written |
| :func:`~hambench.kernels.stop_head.stop_head` | stop MLP, threshold, emitted token, count and `done` on the device |
| :func:`~hambench.kernels.merge_tokens.merge_tokens` | HAMburger's compositional embedder |
| :func:`~hambench.kernels.verify_accept.verify_accept` | greedy accepted prefix and slot rollback; unused (ADR 14) |

Every op takes 1 to 8 rows. A fused op is M-invariant: row `i` of an M-row call has the bits of the 1-row call, so
greedy speculation stays lossless in bf16. Data-dependent scalars (`done`, counts, slots) are 1-element tensors on the
device, so that a captured CUDA graph never needs re-capture. An op whose `done` is set returns at once and leaves its
outputs as they were.

Tests check the fused kernels under Triton's interpreter and compile them ahead of time for sm_80 and sm_90.
docs/results/README.md says what has run on a GPU and what has not.
"""

MAX_ROWS = 8
"""Most rows of one fused call: a decode step, or a verification of up to 7 drafted tokens."""
