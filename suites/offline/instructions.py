"""Machine-checkable instructions on made-up topics, worded and checked by lm-eval's IFEval checkers."""

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
_WORDS_TEXT = (
    "river stone window paper yellow morning kitchen winter music letter silver table bread butter sugar coffee "
    "bottle basket blanket candle mirror carpet curtain ladder hammer engine wheel ticket bridge tunnel station "
    "platform village castle tower church market school library hospital office factory harbour island mountain "
    "valley forest meadow desert ocean beach sand storm thunder lightning rainbow cloud shadow moon planet star "
    "feather wing horse rabbit sheep goat chicken pigeon eagle spider butterfly flower tulip rose apple orange "
    "lemon cherry potato carrot onion garlic pepper salt honey cheese soup plate spoon knife glass jacket "
    "trousers button pocket shoe glove scarf hat ring necklace watch camera radio piano guitar drum violin "
    "painting poem novel newspaper map compass anchor sail rope net boat ship train bicycle lorry airport "
    "passport suitcase hotel doctor nurse teacher farmer baker sailor soldier painter singer dancer "
    "copper iron gold marble brick timber leather cotton wool silk velvet linen ribbon thread needle scissors "
    "pencil brush paint ink stamp envelope diary calendar clock bell whistle trumpet flute organ choir stage"
)
_WORDS = tuple(_WORDS_TEXT.split())
_ENDINGS = (
    "That is all.",
    "Is there anything else I can help with?",
    "Thank you for reading.",
    "I hope this helps.",
    "See you next time.",
    "This is the end.",
    "Have a nice day.",
    "More about it tomorrow.",
)
_MOST_WORDS = 80

_KEYWORDS, _LENGTH, _BULLETS, _ENDING = (
    "keywords:existence",
    "length_constraints:number_words",
    "detectable_format:number_bullet_lists",
    "startend:end_checker",
)
_IN_TURN = ((_KEYWORDS, _LENGTH), (_BULLETS,), (_KEYWORDS, _LENGTH), (_ENDING,))
"""Kinds of instructions, used in turn; each has parameters, so that no single answer can satisfy all of them."""


def _one_answer(words: tuple[str, ...], bullets: int, ending: str) -> str:
    size = -(-len(words) // bullets)
    parts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return "\n".join(f"* {part}" for part in parts) + f"\n{ending}"


_ROOM = _MOST_WORDS - 10
CONSTANTS = tuple(
    _one_answer(_WORDS[start : start + _ROOM], bullets, _ENDINGS[bullets])
    for start in range(0, len(_WORDS), _ROOM)
    for bullets in (2, 3, 4)
)
"""Answers that each satisfy as many instructions as one fixed answer can."""


def built_instructions(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds rows in IFEval's schema: a writing task with one or two instructions of four kinds in turn."""
    registry = _registry()
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"instructions {seed} {number}")
        names = list(_IN_TURN[number % len(_IN_TURN)])
        arguments = [_arguments(name, rng) for name in names]
        asked = _asked(names[0], arguments[0], rng.choice(_SUBJECTS), rng.choice(_FORMS))
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


def _asked(name: str, arguments: dict[str, Any], subject: str, form: str) -> str:
    """Returns the task, which says in plain words what the checker says in its own: a small model needs both."""
    if name == _KEYWORDS:
        first, second = arguments["keywords"]
        return f"Write one sentence about {subject} in which the words {first} and {second} stand."
    if name == _ENDING:
        return f"Write one sentence about {subject}, and then the sentence: {arguments['end_phrase']}"
    return f"Write {form} {subject}."


def _arguments(name: str, rng: random.Random) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = {
        _LENGTH: {"num_words": _MOST_WORDS, "relation": "less than"},
        _KEYWORDS: {"keywords": rng.sample(_WORDS, 2)},
        _BULLETS: {"num_bullets": rng.choice((2, 3, 4))},
        _ENDING: {"end_phrase": rng.choice(_ENDINGS)},
    }
    return known[name]


def _registry() -> dict[str, Any]:
    from hambench.suites.harness.lm_tasks import tasks_folder
    from hambench.suites.harness.shims import task_imports

    with task_imports(tasks_folder() / "ifeval" / "ifeval.yaml"):
        from lm_eval.tasks.ifeval import instructions_registry

    registry: dict[str, Any] = instructions_registry.INSTRUCTION_DICT
    return registry
