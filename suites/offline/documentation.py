"""Retrieval, counting, questions, summaries and classification over documentation that every Python carries."""

from __future__ import annotations

import ast
import contextlib
import inspect
import random
import re
import tokenize
from functools import cache
from typing import Any

from hambench.suites.offline.stdlib_code import MODULES, source_lines

Row = dict[str, Any]

# what a section is about, by topic: the classes of the few-shot task
KINDS = {
    "statement": "assert assignment augassign break class compound continue del for function global if import "
    "nonlocal pass raise return try while with",
    "operator": "binary bitwise booleans comparisons operator-summary power shifting unary in lambda",
    "literal": "atom-literals floating imaginary integers numbers strings formatstrings",
    "type": "typesfunctions typesmapping typesmethods typesmodules typesseq typesseq-mutable bltin-code-objects "
    "bltin-type-objects dict lists string-methods",
    "protocol": "attribute-access callable-types context-managers customization numeric-types sequence-types "
    "specialnames specialattrs id-classes",
}

_PLACES_TEXT = (
    "Lisbon Oslo Cairo Lima Kyoto Turin Quito Dakar Perth Zagreb Tunis Bergen Havana Riga Cusco Lagos"
)
_PLACES = tuple(_PLACES_TEXT.split())
_THINGS_TEXT = "archive museum library station harbour bakery theatre garden bridge market tower school"
_THINGS = tuple(_THINGS_TEXT.split())
_NAMES_TEXT = (
    "Marta Olsen,Ravi Patel,Ines Costa,Tom Baker,Yuki Mori,Lea Novak,Omar Haddad,Eva Lind,Sam Ortiz,"
    "Nina Rossi,Jan Visser,Ana Duarte,Paul Weber,Mei Chen,Igor Petrov,Clara Ruiz"
)
_NAMES = tuple(_NAMES_TEXT.split(","))
_COLOURS_TEXT = "red blue green yellow purple orange white black silver brown"
_COLOURS = tuple(_COLOURS_TEXT.split())


def section_retrieval(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask which of 3 to 6 numbered paragraphs some text comes from.

    Every paragraph ends with its number. Asked for are, in turns, a whole paragraph, its last sentence, which the
    number follows, and any other sentence: easy, middling, hard.
    """
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"retrieval {seed} {number}")
        chosen = rng.sample(
            [each for each in paragraphs() if len(_sentences(each[1])) > 1], rng.choice((4, 5, 6, 8))
        )
        target = rng.randrange(len(chosen))
        # numbers in no order: what follows the last one can't be guessed by counting
        labels = rng.sample(range(10, 100), len(chosen))
        *others, last = _sentences(chosen[target][1])
        sentence = (chosen[target][1], last, rng.choice(others))[number % 3]
        context = "\n\n".join(
            f"{text} [Paragraph {label}]" for label, (_, text) in zip(labels, chosen, strict=True)
        )
        rows.append(_row(context, sentence, [f"Paragraph {labels[target]}"], f"retrieval-{number}"))
    return rows


def section_count(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask how many different sections there are among 3 to 8, some of them repeated."""
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"count {seed} {number}")
        unique = rng.randint(2, 5)
        chosen = rng.sample(paragraphs(), unique)
        shown = [*chosen, *rng.choices(chosen, k=rng.randint(1, 3))]
        rng.shuffle(shown)
        context = "\n\n".join(f"Paragraph {i}: {text}" for i, (_, text) in enumerate(shown, start=1))
        rows.append(_row(context, "", [str(unique)], f"count-{number}"))
    return rows


def key_fact(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask for one made-up fact within documentation it has nothing to do with."""
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"key fact {seed} {number}")
        chosen = [text for _, text in rng.sample(paragraphs(), rng.randint(3, 8))]
        fact, question, answer = _fact(rng)
        chosen.insert(rng.randrange(len(chosen) + 1), fact)
        rows.append(_row("\n\n".join(chosen), question, [answer], f"key-fact-{number}"))
    return rows


def two_facts(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows whose answer needs two made-up facts from different passages; a second pair is there to be confused with."""
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"two facts {seed} {number}")
        places, things = rng.sample(_PLACES, 2), rng.sample(_THINGS, 2)
        names, colours = rng.sample(_NAMES, 2), rng.sample(_COLOURS, 2)
        passages = [text for _, text in rng.sample(paragraphs(), rng.randint(2, 4))]
        for place, thing, name, colour in zip(places, things, names, colours, strict=True):
            passages.append(f"The {thing} in {place} is run by {name}, who took it over some years ago.")
            passages.append(f"{name} drives a {colour} car, and has done so ever since.")
        rng.shuffle(passages)
        context = "\n\n".join(f"Passage {i}:\n{text}" for i, text in enumerate(passages, start=1))
        question = f"What colour is the car of the person who runs the {things[0]} in {places[0]}?"
        rows.append(_row(context, question, [colours[0]], f"two-facts-{number}"))
    return rows


def module_synopsis(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask to sum up a module's documentation; the reference is its own synopsis line."""
    rows = []
    names = list(MODULES)
    random.Random(f"synopsis {seed}").shuffle(names)
    for name in names:
        lines = source_lines(name)
        doc = _docstring(name)
        if not lines or not doc or "\n" not in doc.strip():
            continue
        synopsis, _, rest = doc.strip().partition("\n")
        body = f"Module {name.replace('/', '.')}\n\n{rest.strip()[:1600]}\n\n{_outline(lines)[:1600]}".strip()
        if 15 <= len(synopsis) <= 120 and len(body) >= 500:
            rows.append(_row(body, "", [synopsis.strip()], f"synopsis-{name}"))
        if len(rows) == num_rows:
            break
    return rows


def module_purpose(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows in ARC's columns: which of four synopsis lines is that of a module."""
    synopses = {name: text for name in MODULES if (text := _synopsis(name)) is not None}
    names = sorted(synopses)
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"purpose {seed} {number}")
        name, *others = rng.sample(names, 4)
        texts = [synopses[each] for each in (name, *others)]
        rng.shuffle(texts)
        rows.append(
            {
                "id": f"purpose-{number}",
                "question": f"What is the Python module {name.replace('/', '.')} for?",
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": "ABCD"[texts.index(synopses[name])],
            }
        )
    return rows


def section_kind(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows that ask what kind of thing a section is about, after labelled examples of every kind."""
    kind_of = {topic: kind for kind, topics in KINDS.items() for topic in topics.split()}
    labelled = [(kind_of[topic], _shorten(text)) for topic, text in paragraphs() if topic in kind_of]
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"kind {seed} {number}")
        kind, asked = rng.choice(labelled)
        shots = [
            pair
            for each in KINDS
            for pair in rng.sample([p for p in labelled if p[0] == each and p[1] != asked], 2)
        ]
        rng.shuffle(shots)
        context = "\n".join(f"Section: {text}\nType: {label}" for label, text in shots)
        row = _row(context, f"Section: {asked}\nType:", [kind], f"kind-{number}")
        rows.append({**row, "all_classes": list(KINDS)})
    return rows


@cache
def _synopsis(name: str) -> str | None:
    """First line of a module's documentation, without the module's own name in front."""
    doc = _docstring(name)
    first = (doc or "").strip().split("\n")[0].strip()
    first = re.sub(r"^[\w./]+(\.py)?\s*(--|-|:)\s*", "", first).rstrip(".")
    return first[:1].upper() + first[1:] if 12 <= len(first) <= 110 else None


@cache
def paragraphs() -> tuple[tuple[str, str], ...]:
    """(topic, paragraph) of plain prose in the language reference that ships with Python, in a fixed order."""
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


def _sentences(text: str) -> list[str]:
    """Sentences of a paragraph long enough to tell it from others; the paragraph itself if there are none."""
    return [s for s in re.split(r"(?<=[.;:])\s+(?=[A-Z])", text) if len(s) >= 50] or [text]


def _fact(rng: random.Random) -> tuple[str, str, str]:
    thing, place, name = rng.choice(_THINGS), rng.choice(_PLACES), rng.choice(_NAMES)
    code, year = str(rng.randint(1000, 9999)), str(rng.randint(1850, 1990))
    return rng.choice(
        (
            (
                f"The entrance code of the {thing} in {place} is {code}.",
                f"What is the entrance code of the {thing} in {place}?",
                code,
            ),
            (
                f"The {thing} in {place} was opened in the year {year}.",
                f"In which year was the {thing} in {place} opened?",
                year,
            ),
            (
                f"The director of the {thing} in {place} is {name}.",
                f"Who is the director of the {thing} in {place}?",
                name,
            ),
        )
    )


@cache
def _docstring(name: str) -> str | None:
    """Documentation of a module, from its source; the module is not imported, and only its head is read."""
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
    """Public functions and classes of a module, with the first line of their documentation where it follows at once."""
    found = []
    for index, line in enumerate(lines):
        match = re.match(r"(?:def|class) ([a-zA-Z]\w*)", line)
        if match is None:
            continue
        below = lines[index + 1].strip() if index + 1 < len(lines) else ""
        doc = below.lstrip("ru").strip("\"'\\ ") if below.startswith(('"""', 'r"""', "'''")) else ""
        found.append(f"{match[1]}: {doc}" if doc else match[1])
    return "\n".join(found)


def _shorten(text: str) -> str:
    return text if len(text) <= 240 else text[:240].rsplit(" ", 1)[0] + " ..."


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
