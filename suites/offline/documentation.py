"""Retrieval, summary and question tasks over the documentation that ships with Python."""

from __future__ import annotations

import ast
import contextlib
import inspect
import random
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hambench.suites.offline.lengths import characters, place
from hambench.suites.offline.stdlib_code import MODULES, source_lines

Row = dict[str, Any]

_FEWEST = 4
"""Number of paragraphs or modules in the shortest prompt."""


def section_retrieval(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for the number of the paragraph that a text comes from, after one solved example.

    The text alternates between a whole paragraph and the second half of one, which the number follows.
    """
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"retrieval {seed} {number}")
        chosen = some_paragraphs(characters(number, "prose"), rng)
        target = place(number, len(chosen))
        example = rng.choice([index for index in range(len(chosen)) if index != target])
        # shuffle the numbers, so that counting can't predict the next one
        labels = rng.sample(range(100, 1000), len(chosen))
        whole = number // 2 % 2 == 0
        shown, asked = (each if whole else _second_half(each) for each in (chosen[example], chosen[target]))
        context = "\n\n".join(f"{text} [Paragraph {n}]" for n, text in zip(labels, chosen, strict=True))
        question = f"{shown} [Paragraph {labels[example]}]\n\n{asked}"
        rows.append(_row(context, question, [f"Paragraph {labels[target]}"], f"retrieval-{number}"))
    return rows


def module_synopsis(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for a summary of one of several modules; the reference is its synopsis line."""
    # double quotes end the answer, so a summary must not contain any
    known = [(name, text.replace('"', "'")) for name in MODULES if (text := _synopsis(name)) is not None]
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"synopsis {seed} {number}")
        described: list[tuple[str, str, str]] = []
        size = characters(number, "prose")
        # use at least four modules even in the shortest text
        details = min(size // 6, 400)
        for name, synopsis in rng.sample(known, len(known)):
            text = f'Module {name}\n{_details(name)[:details]}\nSummary of {name}: "{synopsis}"'
            described.append((name, synopsis, text))
            size -= len(text) + 2
            if size <= 0 and len(described) >= _FEWEST:
                break
        name, synopsis, _ = described[place(number, len(described))]
        context = "\n\n".join(text for _, _, text in described)
        rows.append(_row(context, name, [synopsis], f"synopsis-{number}"))
    return rows


def _fours(
    names: Sequence[str], num_rows: int, *, letters: str, rows: str
) -> Iterator[tuple[int, random.Random, str, list[str], str]]:
    """Draws four names per row, the asked one in a place that is equally often each letter.

    Args:
        names: Names to draw from.
        num_rows: Number of rows.
        letters: Seed of the letters' order.
        rows: Seed of the rows.

    Yields:
        The row's number, its generator, the asked name, all four in order, and the asked one's letter.
    """
    order: list[str] = []
    for number in range(num_rows):
        if number % 4 == 0:
            order = random.Random(f"{letters} {number}").sample("ABCD", 4)
        rng = random.Random(f"{rows} {number}")
        name, *chosen = rng.sample(names, 4)
        right = order[number % 4]
        chosen.insert("ABCD".index(right), name)
        yield number, rng, name, chosen, right


def module_purpose(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows in ARC's schema that ask for a module's synopsis among four; every letter is equally often right."""
    synopses = {name: text for name in MODULES if (text := _synopsis(name)) is not None}
    return [
        {
            "id": f"purpose-{number}",
            "question": f"What is the Python module {name.replace('/', '.')} for?",
            "choices": {"text": [synopses[each] for each in chosen], "label": list("ABCD")},
            "answerKey": right,
        }
        for number, _, name, chosen, right in _fours(
            sorted(synopses), num_rows, letters=f"letters {seed}", rows=f"purpose {seed}"
        )
    ]


def module_look_up(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows in ARC's schema that ask for the letter which a directory gives a module's purpose.

    Two modules are looked up beforehand; every letter is equally often right.
    """
    synopses = {name: text for name in MODULES if (text := _synopsis(name)) is not None}
    rows = []
    for number, rng, name, chosen, right in _fours(
        sorted(synopses), num_rows, letters=f"look-up letters {seed}", rows=f"look-up {seed}"
    ):
        texts = [synopses[each] for each in chosen]
        directory = "\n".join(f"{text} (letter {letter})" for text, letter in zip(texts, "ABCD", strict=True))
        solved = [each for each in rng.sample(chosen, 4) if each != name][:2]
        examples = "\n".join(
            f"Module {each}: {synopses[each]} (letter {'ABCD'[chosen.index(each)]})" for each in solved
        )
        rows.append(
            {
                "id": f"look-up-{number}",
                "question": "These are the purposes of four Python modules, each with a letter.\n\n"
                f"{directory}\n\n{examples}\n\nWhat is the letter of module {name}: {synopses[name]}?",
                "begun": f"Module {name}: {synopses[name]} (letter",
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": right,
            }
        )
    return rows


@cache
def _synopsis(name: str) -> str | None:
    """Returns the first line of a module's documentation, without the module's own name in front."""
    doc = _docstring(name)
    first = (doc or "").strip().split("\n")[0].strip()
    first = re.sub(r"^[\w./]+(\.py)?\s*(--|-|:)\s*", "", first).rstrip(".")
    return first[:1].upper() + first[1:] if 12 <= len(first) <= 110 else None


@cache
def paragraphs() -> tuple[tuple[str, str], ...]:
    """Returns (topic, paragraph) of plain prose in Python's language reference, in a fixed order."""
    from pydoc_data.topics import topics

    found = []
    seen = set()
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            text = " ".join(block.split())
            prose = not block.startswith((" ", "*", "=", "-")) and text.endswith(".") and "::=" not in text
            if prose and 180 <= len(text) <= 600 and text not in seen:
                seen.add(text)
                found.append((topic, text))
    return tuple(found)


def some_paragraphs(size: int, rng: random.Random) -> list[str]:
    """Returns at least four different paragraphs with about ``size`` characters in total."""
    chosen: list[str] = []
    for _, text in rng.sample(paragraphs(), len(paragraphs())):
        chosen.append(text)
        size -= len(text) + 20
        if size <= 0 and len(chosen) >= _FEWEST:
            break
    return chosen


@cache
def _details(name: str) -> str:
    """Returns a module's documentation after its first line, and its outline."""
    _, _, rest = (_docstring(name) or "").strip().partition("\n")
    return " ".join(f"{rest} {_outline(source_lines(name) or [])}".split())


def _second_half(text: str) -> str:
    words = text.split(" ")
    return " ".join(words[len(words) // 2 :])


@cache
def _docstring(name: str) -> str | None:
    """Returns a module's docstring from the head of its source, without importing it."""
    lines = source_lines(name)
    if lines is None:
        return None
    with contextlib.suppress(tokenize.TokenError, IndentationError):
        for token in tokenize.generate_tokens(iter([f"{line}\n" for line in lines]).__next__):
            if token.type == tokenize.STRING:
                return inspect.cleandoc(str(ast.literal_eval(token.string)))
            if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING):
                break
    return None


def _outline(lines: list[str]) -> str:
    """Returns a module's public functions and classes, with the first docstring line if it follows directly."""
    found = []
    for index, line in enumerate(lines):
        match = re.match(r"(?:def|class) ([a-zA-Z]\w*)", line)
        if match is None:
            continue
        below = lines[index + 1].strip() if index + 1 < len(lines) else ""
        doc = below.lstrip("ru").strip("\"'\\ ") if below.startswith(('"""', 'r"""', "'''")) else ""
        found.append(f"{match[1]}: {doc}" if doc else match[1])
    return "\n".join(found)


def _row(context: str, question: str, answers: list[str], origin: str) -> Row:
    return {
        "input": question,
        "context": context,
        "answers": answers,
        "length": len(context.split()),
        "dataset": origin.rsplit("-", 1)[0],
        "language": "en",
        "all_classes": None,
        "_id": origin,
    }
