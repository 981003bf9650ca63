"""A tiny random HAMburger checkpoint, and the transformers twin of the tiny target, for tests of the method."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from fakes import TINY_SHAPE, random_weights

from hambench.engine.shape import LlamaShape
from hambench.methods.hamburger.architecture import Architecture, BaseReference
from hambench.methods.hamburger.checkpoint import Checkpoint, load, save, sizes_of
from hambench.methods.hamburger.grafts import Grafts

TINY_ARCHITECTURE = Architecture(feature_layers=(0, 1, 2, 3), num_micro_layers=2, merge_heads=4)


def tiny_grafts(architecture=TINY_ARCHITECTURE, shape=TINY_SHAPE, seed=0, stop_bias=0.0):
    """Random grafts whose stop head changes its mind from token to token."""
    torch.manual_seed(seed)
    grafts = Grafts(shape, architecture)
    with torch.no_grad():
        for name, parameter in grafts.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.8 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
        grafts.stop_head.layers[-1].weight.mul_(4)
        grafts.stop_head.layers[-1].bias.fill_(stop_bias)
    return grafts.eval()


def tiny_checkpoint(architecture=TINY_ARCHITECTURE, shape=TINY_SHAPE, seed=0, **changes) -> Checkpoint:
    """Random grafts on the unchanged tiny target."""
    fields = {
        "architecture": architecture,
        "base": BaseReference(name="tiny-random", fingerprint=None, sizes=sizes_of(shape)),
        "base_weights": "unchanged",
        "tensors": dict(tiny_grafts(architecture, shape, seed).state_dict()),
    }
    return Checkpoint(**{**fields, **changes})


def save_tiny_hamburger(folder: Path, **changes) -> Path:
    """Writes :func:`tiny_checkpoint` to a folder."""
    save(tiny_checkpoint(**changes), folder)
    return folder


def hf_twin(shape=TINY_SHAPE, seed=0):
    """The tiny target as a transformers model, weights and all."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_embeddings,
        rope_theta=shape.rope_theta,
        bos_token_id=256,
        eos_token_id=257,
    )
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(random_weights(shape, seed), strict=False)
    assert not unexpected
    assert not [name for name in missing if not name.endswith("inv_freq")]
    return model


def import_golden(folder: Path, out: Path):
    """The golden file, its checkpoint as ``hambench hamburger import`` makes it, and its base's folder."""
    from click.testing import CliRunner

    from hambench.cli.hamburger import command

    if not folder.is_dir():
        pytest.skip(f"needs {folder.name} of the shared data (macro-steps recorded from the public code)")
    base, imported = out / "base", out / "hamburger"
    base.mkdir()
    shutil.copy(folder / "base_config.json", base / "config.json")
    arguments = ["import", str(folder / "lightning.ckpt"), "--base", str(base), "--out", str(imported)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "golden.json").read_text()), load(imported), base


def shape_of(base: Path) -> LlamaShape:
    """The shape that a model folder's configuration says."""
    from transformers import AutoConfig

    return LlamaShape.from_hf(AutoConfig.from_pretrained(base))


def with_shape(**changes):
    """The tiny shape with other sizes."""
    return dataclasses.replace(TINY_SHAPE, **changes)
