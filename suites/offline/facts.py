"""Questions about made-up facts hidden in unrelated documentation."""

from __future__ import annotations

import random
from typing import Any

from hambench.suites.offline.documentation import some_paragraphs
from hambench.suites.offline.lengths import characters, place

Row = dict[str, Any]

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
_COLOURS_TEXT = (
    "red blue green yellow purple orange white black silver brown pink grey golden violet cream beige"
)
_COLOURS = tuple(_COLOURS_TEXT.split())


def key_fact(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for one made-up fact among similar ones, about one per 300 tokens."""
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"key fact {seed} {number}")
        size = characters(number, "prose")
        texts = some_paragraphs(size, rng)
        kind = rng.randrange(len(_FACTS))
        where = rng.sample(
            [(thing, town) for thing in _THINGS for town in _PLACES], min(2 + size // 1200, len(_NAMES))
        )
        values = _different_values(kind, len(where), rng)
        facts = [
            _FACTS[kind].format(thing=t, place=p) + f" {v}." for (t, p), v in zip(where, values, strict=True)
        ]
        target = place(number, len(facts))
        # spread the facts over the text in order, so that a fact's index gives its depth
        for index in range(len(facts) - 1, -1, -1):
            texts.insert(round((index + 0.5) / len(facts) * len(texts)), facts[index])
        begun = _FACTS[kind].format(thing=where[target][0], place=where[target][1])
        question = _QUESTIONS[kind].format(thing=where[target][0], place=where[target][1])
        row = _row("\n\n".join(texts), question, values[target], f"key-fact-{number}")
        rows.append({**row, "begun": begun})
    return rows


def two_keys(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows that ask for a fact identified only by its passage (a place) and its sentence (a thing) together.

    Every passage names who runs the same two things.
    """
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"two keys {seed} {number}")
        size = characters(number, "prose")
        count = min(3 + size // 2400, len(_NAMES) // 2)
        places, things = rng.sample(_PLACES, count), rng.sample(_THINGS, 2)
        texts = some_paragraphs(max(size - 150 * count, 0), rng)
        # use each name once, so that the most common one is not a better guess than any other
        own = rng.sample(_NAMES, 2 * count)
        names = [own[2 * index : 2 * index + 2] for index in range(count)]
        passages = []
        for index, town in enumerate(places):
            said = " ".join(
                f"The {thing} is run by {name}." for thing, name in zip(things, names[index], strict=True)
            )
            filler = texts[index * len(texts) // count : (index + 1) * len(texts) // count]
            passages.append("\n".join([f"Passage {index + 1}, about {town}:", *filler, f"In {town}: {said}"]))
        asked, thing = place(number, count), rng.randrange(len(things))
        question = f"Who runs the {things[thing]} in {places[asked]}?"
        row = _row("\n\n".join(passages), question, names[asked][thing], f"two-keys-{number}")
        rows.append({**row, "begun": f"In {places[asked]}: The {things[thing]} is run by"})
    return rows


_FACTS = (
    "The entrance code of the {thing} in {place} is",
    "The {thing} in {place} was opened in the year",
    "The director of the {thing} in {place} is",
)
_QUESTIONS = (
    "What is the entrance code of the {thing} in {place}?",
    "In which year was the {thing} in {place} opened?",
    "Who is the director of the {thing} in {place}?",
)


VALUES = r"(?m)(?:code of the \w+ in \w+ is|opened in the year|director of the \w+ in \w+ is|is run by) ([^.\n]+)\."
"""Matches the values of all facts in a text."""


def _different_values(kind: int, count: int, rng: random.Random) -> list[str]:
    if kind == 2:
        return rng.sample(_NAMES, count)
    return [str(each) for each in rng.sample(range(1000, 9999) if kind == 0 else range(1700, 2000), count)]


def _row(context: str, question: str, answer: str, origin: str) -> Row:
    return {
        "input": question,
        "context": context,
        "answers": [answer],
        "length": len(context.split()),
        "dataset": origin.rsplit("-", 1)[0],
        "language": "en",
        "all_classes": None,
        "_id": origin,
    }
