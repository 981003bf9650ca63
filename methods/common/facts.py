"""Facts that several methods share: phases of the common parts, and the draft length's option. No torch."""

from __future__ import annotations

from hambench.method_facts import Phase, ShortOption

KV_DTYPES = ("model", "int8")
"""How keys and values are stored: in the model's type, or in 8 bits with a bfloat16 scale per slot and head."""

SAMPLE = Phase("hambench.methods.common.sequence", "choose", "sample")

VERIFY = (
    Phase("hambench.methods.common.verify", "verify", "verify"),
    Phase("hambench.methods.common.verify", "accept_greedy", "accept"),
    Phase("hambench.methods.common.verify", "accept_sampled", "accept"),
)

DRAFT_TOKENS = ShortOption(flags=("-k", "--draft-tokens"), knob="k", help="Drafted tokens per step: 1,2,4,8.")
