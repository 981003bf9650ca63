"""HAMburger as a decoding method: finds the weights, checks that they belong to the target, and assembles the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from hambench.decoding import SamplingParams, Target
from hambench.engine.cuda.early_exit import Loop
from hambench.engine.cuda.graphs import log_once
from hambench.engine.llama import Llama
from hambench.errors import ModelError
from hambench.methods.common.sequence import check_request, decode_a_little
from hambench.methods.hamburger import checkpoint as checkpoints
from hambench.methods.hamburger.architecture import Architecture, BaseReference, PositionConvention
from hambench.methods.hamburger.model import HamburgerModel
from hambench.methods.hamburger.session import HamburgerSession
from hambench.methods.hamburger.verified import VerifiedHamburger
from hambench.methods.hamburger.weights_folder import find_weights, read_config
from hambench.models.safetensors import weight_files
from hambench.models.target import locate

if TYPE_CHECKING:
    from hambench.methods.hamburger.config import HamburgerConfig
    from hambench.methods.hamburger.device.session import DeviceSession


@dataclasses.dataclass(frozen=True)
class Hamburger:
    """A target with HAMburger weights, at one confidence."""

    name: str
    target: Target
    model: HamburgerModel
    confidence: float
    position_convention: PositionConvention
    extra_weight_bytes: int
    loop: Loop = "run-ahead"
    lossless: bool = False

    def warmup(self) -> None:
        """Decodes a few macro-steps, so that no timed answer pays for packing, page-in and allocation."""
        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> HamburgerSession | DeviceSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        check_request(self.target, prompt_ids, params.max_new_tokens)
        if self._led_by_engine(params):
            from hambench.methods.hamburger.device.session import DeviceSession

            return DeviceSession(
                self.model,
                prompt_ids,
                params,
                confidence=self.confidence,
                position_convention=self.position_convention,
                loop=self.loop,
            )
        return HamburgerSession(
            self.model,
            prompt_ids,
            params,
            confidence=self.confidence,
            position_convention=self.position_convention,
        )

    def _led_by_engine(self, params: SamplingParams) -> bool:
        from hambench.methods.hamburger.device.choice import leader_of

        leader = leader_of(self.model)
        reason = (
            leader.obstacle if params.greedy else "its macro-steps are greedy only, and tokens are sampled"
        )
        if leader.engine != "reference" and reason is not None:
            log_once(
                f"HAMburger's macro-steps are led by the host: {reason}; the base runs on the {leader.engine} kernels, "
                "the micro-steps on torch's operations"
            )
        return leader.make is not None and params.greedy


def build_verified(config: HamburgerConfig, target: Target) -> VerifiedHamburger:
    """Builds the method of one verified cell.

    Raises:
        ModelError: As :func:`build`.
    """
    method = build(config, target)
    return VerifiedHamburger(
        name=config.label,
        target=target,
        model=method.model,
        confidence=config.confidence,
        extra_weight_bytes=method.extra_weight_bytes,
    )


def build(config: HamburgerConfig, target: Target) -> Hamburger:
    """Builds the method of one cell; several confidences on one target share the weights.

    Raises:
        ModelError: If there are no weights for this model, or they are damaged or belong to another base.
    """
    folder = find_weights(config.checkpoint, target.name)
    model, own_base_bytes = target.shared(f"hamburger:{folder}", lambda: _assemble(folder, target))
    model.base.prefill_chunk = target.llama.prefill_chunk
    target.companions[f"HAMburger weights {config.checkpoint or 'shipped'}"] = checkpoints.digest(folder)
    convention = model.architecture.position_convention
    if config.position_convention is not None:
        convention = "hf" if config.position_convention == "hf" else "train"
    return Hamburger(
        name=config.label,
        target=target,
        model=model,
        confidence=config.confidence,
        position_convention=convention,
        loop=cast(Loop, config.loop),
        extra_weight_bytes=model.graft_bytes + own_base_bytes,
    )


def _assemble(folder: Path, target: Target) -> tuple[HamburgerModel, int]:
    """Returns the model, and the bytes of base weights that it does not share with the target."""
    # compare the configuration first, because reading gigabytes only to refuse them takes long
    config = read_config(folder)
    Architecture.from_json(config["architecture"])
    if target.llama.reference is None:
        raise ModelError(
            f"HAMburger needs a Llama-family model on the engine's own layers; {target.name} is not"
        )
    reference = BaseReference(**config["base"])
    reference.check(checkpoints.sizes_of(target.llama.shape), None)
    if reference.fingerprint and config["base_weights"] != "full":
        reference.check({**reference.sizes}, checkpoints.fingerprint(weight_files(locate(target.name)[0])))
    checkpoint = checkpoints.load(folder)
    if checkpoint.base_weights == "unchanged":
        return HamburgerModel(target.llama, checkpoint), 0
    if checkpoint.base_weights == "full":
        weights: Mapping[str, Tensor] = checkpoint.group("base")
    else:
        weights = with_low_rank(_original(target), checkpoint.group("lora"), scale=checkpoint.lora_scale)
    base = target.llama.with_same_backend(Llama(target.llama.shape, weights, target.dtype, target.device))
    if checkpoint.base_weights == "fused_lora":
        return HamburgerModel(target.llama, checkpoint, fused_base=base), base.weight_bytes
    return HamburgerModel(base, checkpoint), base.weight_bytes


def _original(target: Target) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in weight_files(locate(target.name)[0]):
        weights.update(load_file(path))
    return weights


def with_low_rank(
    weights: Mapping[str, Tensor], changes: Mapping[str, Tensor], *, scale: float
) -> dict[str, Tensor]:
    """Adds ``scale * B @ A`` in float32 to ``NAME.weight`` for each pair ``NAME.A``, ``NAME.B``; returns all weights.

    Raises:
        ModelError: If a change belongs to no weight or has another size.
    """
    changed = dict(weights)
    for name in sorted({full.rsplit(".", 1)[0] for full in changes}):
        try:
            delta = changes[f"{name}.B"].float() @ changes[f"{name}.A"].float()
            whole = weights[f"{name}.weight"]
            changed[f"{name}.weight"] = (whole.float() + scale * delta).to(whole.dtype)
        except (KeyError, RuntimeError) as error:
            raise ModelError(f"the low-rank change of {name} does not fit the base: {error}") from error
    return changed
