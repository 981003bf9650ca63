"""Defines :class:`PeerConfig`, the facts that all peers share. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hambench.decoding import MethodConfig


@dataclass(frozen=True, kw_only=True)
class PeerConfig(MethodConfig):
    """The knobs of a peer, which decodes with an engine of its own.

    ``--methods all`` leaves it out, and a batch can't share its forwards.
    """

    in_all: ClassVar[bool] = False
    shares_forwards: ClassVar[bool] = False
