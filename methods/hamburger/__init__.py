"""HAMburger (arXiv 2505.20438): several tokens per forward and per KV slot; lossy, with a confidence knob.

The compositional embedder (:mod:`.grafts`) merges the tokens of the last macro-step into one input vector. The base
model runs once over it. A small micro-step decoder then emits up to four tokens from the base's features, until a stop
head ends the macro-step. Importing this package does not import torch.
"""

from hambench.methods.hamburger.architecture import Architecture
from hambench.methods.hamburger.config import HamburgerConfig

__all__ = ["Architecture", "HamburgerConfig"]
