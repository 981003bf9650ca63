"""HAMburger (arXiv 2505.20438): several tokens per forward and per KV slot; lossy, with a confidence knob.

The tokens of the last macro-step become one input vector (:mod:`.grafts`: the compositional embedder), the base model
runs once over it, and a small micro-step decoder emits up to four tokens from the base's features until a stop head
says so. Importing this package does not import torch.
"""

from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.config import HamburgerConfig

__all__ = ["Architecture", "HamburgerConfig"]
