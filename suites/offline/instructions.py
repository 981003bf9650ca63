"""Instructions that a program can check, worded and checked by lm-eval's own IFEval checkers, over made-up topics."""

from __future__ import annotations

import random
from typing import Any

Row = dict[str, Any]

_SUBJECTS_TEXT = (
    "a harbour at sunrise,a walk in the mountains,the first day at a new school,how to bake bread,"
    "a lost umbrella,a train journey at night,the garden in spring,why bridges need repair,"
    "a visit to the museum,an old bicycle,how to care for a cat,the sound of rain,a market in summer,"
    "learning to swim,a letter from a friend,planting trees"
)
_SUBJECTS = tuple(_SUBJECTS_TEXT.split(","))
_FORMS = ("a short note about", "two or three sentences about", "a short paragraph about")
_WORDS_TEXT = "river stone window paper yellow morning kitchen winter music garden letter silver"
_WORDS = tuple(_WORDS_TEXT.split())
_ENDINGS = ("That is all.", "Is there anything else I can help with?", "Thank you for reading.")

# checker: (how hard it is for a small model, its arguments); "easy" ones are met by nearly any answer
_EASY = ("length_constraints:number_words", "keywords:forbidden_words")
_MIDDLE = ("punctuation:no_comma", "keywords:existence", "detectable_format:number_bullet_lists")
_HARD = (
    "startend:end_checker",
    "detectable_format:title",
    "startend:quotation",
    "detectable_content:postscript",
)


def built_instructions(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Rows in IFEval's columns: a writing task with one or two instructions, from easy to hard in turn."""
    registry = _registry()
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"instructions {seed} {number}")
        asked = f"Write {rng.choice(_FORMS)} {rng.choice(_SUBJECTS)}."
        names = _chosen(number, rng)
        arguments = [_arguments(name, rng) for name in names]
        texts = []
        for name, given in zip(names, arguments, strict=True):
            checker = registry[name](name)
            texts.append(str(checker.build_description(**given)).strip())
        rows.append(
            {
                "key": number,
                "prompt": " ".join([asked, *texts]),
                "instruction_id_list": names,
                "kwargs": arguments,
            }
        )
    return rows


def _chosen(number: int, rng: random.Random) -> list[str]:
    pools = (_EASY, _MIDDLE, _MIDDLE, _HARD)
    names = [rng.choice(pools[number % len(pools)])]
    if number % 5 == 4:
        names.append(rng.choice([each for each in _EASY if each not in names]))
    return names


def _arguments(name: str, rng: random.Random) -> dict[str, Any]:
    words = rng.sample(_WORDS, 2)
    known: dict[str, dict[str, Any]] = {
        "length_constraints:number_words": {"num_words": rng.choice((20, 30, 40)), "relation": "at least"},
        "keywords:forbidden_words": {"forbidden_words": words},
        "keywords:existence": {"keywords": words[:1]},
        "detectable_format:number_bullet_lists": {"num_bullets": 3},
        "startend:end_checker": {"end_phrase": rng.choice(_ENDINGS)},
        "detectable_content:postscript": {"postscript_marker": "P.S."},
    }
    return known.get(name, {})


def _registry() -> dict[str, Any]:
    from hambench.suites.harness.lm_tasks import tasks_folder
    from hambench.suites.harness.shims import task_imports

    with task_imports(tasks_folder() / "ifeval" / "ifeval.yaml"):
        from lm_eval.tasks.ifeval import instructions_registry

    registry: dict[str, Any] = instructions_registry.INSTRUCTION_DICT
    return registry
