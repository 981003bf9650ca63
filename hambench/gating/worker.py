"""One fresh process of a block: loads a model and a method, then decodes a prompt each time it is told to.

Run by its path with the interpreter of an arm, so that two versions of hambench are measured by the same code. It uses
the contract only (``models.load``, ``registry``, ``engine.generate``), and speaks JSON lines: the work on stdin first,
then one prompt number a line; a ``ready`` line and one trace for each number on stdout.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Answers until stdin ends."""
    # what libraries print must not get between the lines of the protocol
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
    target = load_target(work)
    method = method_config(work["method"]).from_knobs(work["knobs"]).build(target)
    prompts = [prompt_ids(prompt, target, work["max_new_tokens"]) for prompt in work["prompts"]]
    params = SamplingParams(max_new_tokens=work["max_new_tokens"])
    method.warmup()
    generate(method, prompts[0], params)
    # the package that this process imported, which need not be the one this file lies in
    code = Path(str(sys.modules["hambench"].__file__)).parent
    reply(answers, {"ready": True, "code": str(code), "torch": torch.__version__})
    for line in sys.stdin:
        trace = generate(method, prompts[int(line)], params)
        reply(answers, {"trace": msgspec.to_builtins(trace), "peak_memory_bytes": peak_memory(target.device)})
    # all is said; an interpreter full of torch takes the better part of a second to take itself apart
    os._exit(0)


def load_target(work: dict[str, Any]) -> Any:
    """The model; the toy is made rather than loaded."""
    if work["model"] == "toy":
        from hambench.gating.toy import load_toy

        return load_toy()
    from hambench.models import load

    return load(work["model"], dtype=work["dtype"], device=work["device"])


def prompt_ids(prompt: dict[str, Any], target: Any, max_new_tokens: int) -> list[int]:
    """Ids of a prompt that has ids, or a text; a text that is too long loses its middle."""
    if prompt["ids"] is not None:
        return list(prompt["ids"])
    try:
        from hambench.engine.text import encode_text
    except ImportError:  # a base commit from before this module
        from hambench.prompts import encode_text  # type: ignore[import-not-found, no-redef]

    ids = encode_text(prompt["text"], target.tokenizer, add_special_tokens=not prompt["chat"])
    room = target.context_length - max_new_tokens
    return ids if len(ids) <= room else ids[: room // 2] + ids[len(ids) - room // 2 :]


def peak_memory(device: Any) -> int | None:
    """Peak of the allocator; a CPU's resident set depends on too much else to compare."""
    import torch

    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def reply(stream: TextIO, message: dict[str, Any]) -> None:
    """Writes one line."""
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
