"""Stand-ins that are real code at toy size: a byte tokenizer, a tiny random Llama, a clock that tests move."""

from __future__ import annotations

import dataclasses
import json

import torch

from hambench.engine.llama import Llama
from hambench.engine.shape import LlamaShape
from hambench.models.contents import EMBEDDING, HEAD, sizes_of
from hambench.models.target import ModelIdentity, TargetModel

TINY_SHAPE = LlamaShape(
    vocab_size=260,
    hidden_size=64,
    intermediate_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_positions=512,
    tie_embeddings=False,
)
EOS = 257


class ByteTokenizer:
    """Ids 0..255 are bytes; 256 begins, 257 ends a text."""

    bos_token, eos_token = None, "<eos>"
    bos_token_id, eos_token_id = 256, EOS
    chat_template = None
    vocab_size = 260

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": self.encode(text)}

    def encode(self, text, add_special_tokens=True):
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, ids, skip_special_tokens=False):
        text = bytes(i for i in ids if i < 256).decode("utf-8", "replace")
        return text if skip_special_tokens or EOS not in ids else text + self.eos_token

    def get_vocab(self):
        return {**{chr(i): i for i in range(256)}, "<bos>": 256, self.eos_token: EOS}


class FakeClock:
    """Advances by ``tick`` seconds at every reading."""

    def __init__(self, tick: float = 1.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def random_weights(shape: LlamaShape, seed: int = 0, scale: float = 0.4) -> dict[str, torch.Tensor]:
    """Weights by Hugging Face name, large enough that greedy decoding does not fall into one token at once."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * scale / size[-1] ** 0.5 * 2

    sizes = sizes_of(shape)
    head = sizes.pop(HEAD, None)
    weights = {EMBEDDING: torch.randn(*sizes.pop(EMBEDDING), generator=generator)}
    weights |= {n: normal(*size) if len(size) > 1 else torch.ones(*size) for n, size in sizes.items()}
    return weights if head is None else {**weights, HEAD: normal(*head) * 3}


def tiny_target(
    seed: int = 0, dtype: torch.dtype = torch.float32, shape: LlamaShape = TINY_SHAPE
) -> TargetModel:
    """A tiny random Llama as a target model."""
    return TargetModel(
        name="tiny-random",
        llama=Llama(shape, random_weights(shape, seed), dtype),
        tokenizer=ByteTokenizer(),
        eos_ids=frozenset({EOS}),
        context_length=shape.max_positions,
        identity=ModelIdentity(
            name="tiny-random",
            source="made by the tests",
            sha256="0" * 64,
            architecture="llama",
            dtype=str(dtype).removeprefix("torch."),
            note="random weights",
        ),
    )


def save_tiny_model(folder, shape: LlamaShape | None = None, seed: int = 0):
    """Writes a tiny random Llama as a Hugging Face folder with a byte-level tokenizer of its own."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    shape = shape or dataclasses.replace(TINY_SHAPE, max_positions=8192)
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    vocabulary |= {"<bos>": 256, "<eos>": EOS, "<pad>": 258, "<unused>": 259}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    LlamaConfig(
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
        eos_token_id=EOS,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in random_weights(shape, seed).items()},
        folder / "model.safetensors",
    )
    return folder


def swap_tokens(folder):
    """Gives two ids of a saved model's tokenizer each other's text: as many tokens, and another tokenizer."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = (
        next(token for token, index in vocabulary.items() if index == wanted) for wanted in (70, 71)
    )
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


def wrap_prompts(folder):
    """Lets a saved model's tokenizer put ``<bos>`` before every text and ``<eos>`` behind it, as some do."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<bos>", "<eos>"))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text, end],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}, end],
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]}
            for token, index in (("<bos>", 256), ("<eos>", EOS))
        },
    }
    file.write_text(json.dumps(content))
    return folder
