"""One fresh process of a block: loads a model and a method, then decodes prompts on command.

It is run by its path with an arm's interpreter, so that the same code measures two versions of hambench. It uses only
the contract (``models.load``, ``runner.backend``, ``registry``, ``engine.generate``). The protocol is JSON lines. On
stdin come the work, then one prompt number per line; on stdout go a ``ready`` line and one trace per number.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Decodes prompts until stdin ends."""
    # output of libraries must not mix with the protocol
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work = json.loads(sys.stdin.readline())

    import msgspec
    import torch

    from hambench.decoding import SamplingParams
    from hambench.engine import generate
    from hambench.registry import method_config

    if work["threads"] is not None:
        torch.set_num_threads(work["threads"])
    target, kernels = run_by_kernels(load_target(work), work["kernels"])
    method = method_config(work["method"]).from_knobs(work["knobs"]).build(target)
    prompts = [prompt_ids(prompt, target, work["max_new_tokens"]) for prompt in work["prompts"]]
    params = SamplingParams(max_new_tokens=work["max_new_tokens"])
    method.warmup()
    generate(method, prompts[0], params)
    # the package that this process imported may be a different one from this file's
    code = Path(str(sys.modules["hambench"].__file__)).parent
    reply(answers, {"ready": True, "code": str(code), "torch": torch.__version__, "kernels": kernels})
    for line in sys.stdin:
        trace = generate(method, prompts[int(line)], params)
        reply(answers, {"trace": msgspec.to_builtins(trace), "peak_memory_bytes": peak_memory(target.device)})
    # skip the interpreter's shutdown, which takes most of a second with torch loaded
    os._exit(0)


def load_target(work: dict[str, Any]) -> Any:
    """Loads the model, or builds the toy."""
    if work["model"] == "toy":
        from hambench.gating.toy import load_toy

        return load_toy()
    from hambench.models import load

    return load(work["model"], dtype=work["dtype"], device=work["device"])


def run_by_kernels(target: Any, kernels: str) -> tuple[Any, str]:
    """Returns the target on the kernels asked for, and which these are."""
    try:
        from hambench.runner.backend import choose_kernels, run_by
    except ImportError:  # a base commit from before kernels could be chosen
        return target, "reference"
    chosen = choose_kernels(kernels, target)
    return run_by(target, kernels=chosen), chosen


def prompt_ids(prompt: dict[str, Any], target: Any, max_new_tokens: int) -> list[int]:
    """Returns a prompt's ids, or encodes its text; cuts the middle out of a text that is too long."""
    if prompt["ids"] is not None:
        return list(prompt["ids"])
    try:
        from hambench.engine.text import encode_text
    except ImportError:  # a base commit from before this module existed
        from hambench.prompts import encode_text  # type: ignore[import-not-found, no-redef]

    ids = encode_text(prompt["text"], target.tokenizer, add_special_tokens=not prompt["chat"])
    room = target.context_length - max_new_tokens
    return ids if len(ids) <= room else ids[: room // 2] + ids[len(ids) - room // 2 :]


def peak_memory(device: Any) -> int | None:
    """Returns the GPU allocator's peak; a CPU process's resident set is not comparable."""
    import torch

    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def reply(stream: TextIO, message: dict[str, Any]) -> None:
    """Writes one line."""
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
