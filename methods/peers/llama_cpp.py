"""llama.cpp as a peer through ``llama-cpp-python``, the strongest competitor on a CPU.

Token ids go in and out. It runs the GGUF file itself (for the default model, the file from which hambench's copy was
de-quantised). So its weights keep their 4 or 5 bits, and it quantises activations. Its arithmetic is close to the
target's but different, so it does not count as lossless.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hambench.decoding import KVUsage, SamplingParams, SessionEndedError, Step
from hambench.errors import ModelError
from hambench.files import expanded
from hambench.method_facts import KnobValue, ModelBytes
from hambench.methods.peers.base import PeerConfig
from hambench.models.embedded import EMBEDDED, ensure_gguf, gguf_path, hash_cache
from hambench.models.safetensors import digest

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.engine.shape import LlamaShape
    from hambench.records import StepRecord

PROBE = """
import sys
from llama_cpp import Llama
context = Llama(model_path=sys.argv[1], n_ctx=64, verbose=False)
context.eval([0] * 40)
context.eval([0])
"""
AMX_OFF = "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
"""CMake arguments that build llama.cpp for such a CPU without its AMX kernels."""
WITHOUT_AMX = (
    f"CMAKE_ARGS='{AMX_OFF}' pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
)
F16_BYTES = 2
"""llama.cpp keeps keys and values as float16 unless told otherwise; it is not told otherwise here."""


@dataclass(frozen=True, kw_only=True)
class LlamaCppConfig(PeerConfig):
    """Decodes a GGUF file with llama.cpp, as a peer to compare with."""

    method: ClassVar[str] = "llama_cpp"

    gguf: str | None = None
    """GGUF file of the target model; by default the embedded model's own."""
    num_threads: int | None = None
    """Threads; by default as many as torch uses."""

    def __post_init__(self) -> None:
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"num_threads must be >= 1, got {self.num_threads}")

    def unavailable_for(self, model: str) -> str | None:
        """Returns why it can't run: the package or the file is missing; ``None`` if it can."""
        if importlib.util.find_spec("llama_cpp") is None:
            return (
                "llama_cpp needs llama-cpp-python, which is not installed: pip install 'hambench[llama-cpp]'"
            )
        if self.gguf is None and model not in EMBEDDED:
            return f"llama_cpp needs a GGUF file of {model}: --method-arg llama_cpp.gguf=FILE"
        return None

    def own_sizes(self, model: str) -> Mapping[str, KnobValue]:
        """Returns the bytes of the embedded model's own file, all of which a token reads; unknown for other files."""
        if self.gguf is not None or model not in EMBEDDED:
            return {}
        path = gguf_path(EMBEDDED[model])
        return {"weight_bytes": path.stat().st_size} if path.is_file() else {}

    def bytes_read(
        self, step: StepRecord, before: StepRecord, sizes: ModelBytes, own_sizes: Mapping[str, KnobValue]
    ) -> float | None:
        """Counts the file's tensors and a float16 cache, independently of the other cells' dtype."""
        weights = own_sizes.get("weight_bytes")
        if not isinstance(weights, int) or step.target_forwards is None or step.kv_slots is None:
            return None
        cache = step.kv_slots * sizes.kv_per_slot * F16_BYTES / sizes.dtype_bytes
        return step.target_forwards * (weights + cache)

    def build(self, target: Target) -> LlamaCpp:
        """Finds the file and checks that its vocabulary is the target's.

        Raises:
            ModelError: If the file can't be used for this target.
        """
        if self.gguf is None and target.name not in EMBEDDED:
            raise ModelError(f"llama_cpp needs a GGUF file of {target.name}: set gguf=FILE")
        path = ensure_gguf(EMBEDDED[target.name]) if self.gguf is None else expanded(self.gguf)
        if not path.is_file():
            raise ModelError(f"llama_cpp: there is no file {path}")
        check_it_runs(path)
        target.companions[f"GGUF file {path.name}"] = digest([path], hash_cache())
        method = LlamaCpp(self.label, self, target, path)
        context = method.borrow()
        size, wanted = context.n_vocab(), target.llama.shape.vocab_size
        method.give_back(context)
        if size != wanted:
            raise ModelError(
                f"{path.name} has {size} tokens, {target.name} has {wanted}: it is another model"
            )
        return method


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file, and contexts that sessions borrow, each with the state of one sequence."""

    name: str
    config: LlamaCppConfig
    target: Target
    path: Path
    lossless: bool = False
    extra_weight_bytes: int = 0
    _free: list[Any] = field(default_factory=list, repr=False)

    def warmup(self) -> None:
        """Decodes a few tokens."""
        from hambench.methods.common.sequence import decode_a_little

        decode_a_little(self)

    def start(self, prompt_ids: Sequence[int], params: SamplingParams) -> LlamaCppSession:
        """Opens a session; see :class:`hambench.decoding.DecodingMethod`."""
        from hambench.methods.common.sequence import check_request

        check_request(self.target, prompt_ids, params.max_new_tokens)
        return LlamaCppSession(self, list(prompt_ids), params)

    def borrow(self) -> Any:
        """Returns a context that no session uses."""
        return self._free.pop() if self._free else self._new_context()

    def give_back(self, context: Any) -> None:
        """Returns a context for the next session."""
        self._free.append(context)

    def _new_context(self) -> Any:
        import torch
        from llama_cpp import Llama

        num_threads = self.config.num_threads or torch.get_num_threads()
        return Llama(
            model_path=str(self.path),
            n_ctx=self.target.context_length,
            n_threads=num_threads,
            n_threads_batch=num_threads,
            n_gpu_layers=-1 if self.target.device.type == "cuda" else 0,
            verbose=False,
        )


class LlamaCppSession:
    """One sequence in its own context.

    Args:
        method: The method it belongs to.
        prompt_ids: The prompt.
        params: Limit and sampling.
    """

    def __init__(self, method: LlamaCpp, prompt_ids: list[int], params: SamplingParams) -> None:
        self._context = method.borrow()
        weakref.finalize(self, method.give_back, self._context)
        # what is left of another prompt would be reused as a prefix, and this one's prefill be too short
        self._context.reset()
        self._context.set_seed(params.seed)
        self._num_left = params.max_new_tokens
        self._tokens: Iterator[int] = self._context.generate(
            prompt_ids,
            temp=params.temperature,
            top_p=params.top_p,
            top_k=0,
            min_p=0.0,
            repeat_penalty=1.0,
        )
        self._bytes_per_slot = bytes_per_slot(method.target)

    def prefill(self) -> Step:
        """Processes the prompt and emits the first token."""
        return self.step()

    def step(self) -> Step:
        """Emits the next token.

        Raises:
            SessionEndedError: At the limit, beyond which the context has no room.
        """
        if self._num_left == 0:
            raise SessionEndedError("length")
        self._num_left -= 1
        return Step(tokens=(int(next(self._tokens)),))

    @property
    def kv(self) -> KVUsage:
        """llama.cpp's own count of evaluated tokens, and the bytes that follow from the model's shape."""
        slots = int(self._context.n_tokens)
        return KVUsage(slots, slots * self._bytes_per_slot)


@cache
def check_it_runs(path: Path) -> None:
    """Tries the file in a separate process, because a crash of llama.cpp would end the whole run.

    Raises:
        ModelError: If it crashes.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode < 0:
        # seen with Q4_1 on Sapphire Rapids: https://github.com/ggml-org/llama.cpp/issues/20824
        raise ModelError(
            f"llama.cpp dies from signal {-done.returncode} here; if the CPU has AMX, whose kernels are known "
            f"to, build it without: {WITHOUT_AMX}"
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise ModelError(f"llama.cpp can't run {path.name}: {lines[-1]}")


def bytes_per_slot(target: Target) -> int:
    """Bytes of one cached token in float16."""
    shape: LlamaShape = target.llama.shape
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * F16_BYTES
