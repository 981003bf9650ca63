"""Decoding kernels: plain-torch reference ops with fused Triton versions, a leaf importing nothing of hambench.

One file per op, named like its public function; `impl="auto" | "reference" | "fused"` chooses:

- `auto`: fused on a CUDA device of compute capability 8.0 or later where the op supports the arguments, else the
  reference (with one logged line where a CUDA device had to fall back);
- `fused`: the Triton kernel, or a `ValueError` that says why not. On a CPU it runs under `TRITON_INTERPRET=1` only;
- `reference`: the definition, in float32, on any device.

| op | gives |
|---|---|
| :func:`~hambench.kernels.norm_gemv.norm_gemv` | (embedding row) → RMSNorm → `W x`, bf16 or INT8 weights |
| :func:`~hambench.kernels.norm_gateup_silu.norm_gateup_silu` | RMSNorm → `silu(Wg x) * (Wu x)` |
| :func:`~hambench.kernels.gemv_residual.gemv_residual` | `residual + W x` |
| :func:`~hambench.kernels.micro_attention.micro_attention` | RoPE, append, attention over at most 8 keys |
| :func:`~hambench.kernels.decode_attention.decode_attention` | RoPE, append, attention over it all; slot ≠ position |
| :func:`~hambench.kernels.lm_head_argmax.lm_head_argmax` | greedy token of each row, no logits written |
| :func:`~hambench.kernels.stop_head.stop_head` | stop MLP, threshold, emitted token, count and `done` on the device |
| :func:`~hambench.kernels.merge_tokens.merge_tokens` | HAMburger's compositional embedder |
| :func:`~hambench.kernels.verify_accept.verify_accept` | greedy longest accepted prefix and the slot rollback |

Every op takes 1 to 8 rows and is M-invariant when fused: row `i` of an M-row call has the bits of the 1-row call, so
greedy speculation stays lossless in bf16. Data-dependent scalars (`done`, counts, slots) are 1-element tensors on the
device, so that a captured CUDA graph never needs re-capture; an op whose `done` is set returns at once and leaves its
outputs as they were.

The fused kernels are checked under Triton's interpreter and compiled ahead of time for sm_80 and sm_90. What has and
has not been run on a GPU is said in docs/results/README.md.
"""
