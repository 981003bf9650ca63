"""``hambench hamburger overlap``: what the data of a training run shares with the suites' rows."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hambench.cli._options import DEFAULT_MODEL, UserPath
from hambench.errors import DataError

if TYPE_CHECKING:
    from hambench.methods.hamburger.data.overlap import Overlap, Protected


@click.command(
    epilog="""
\b
Example:
  hambench hamburger overlap weights
""",
)
@click.argument("folder", type=UserPath(path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="The base.")
@click.option(
    "--data",
    type=UserPath(path_type=Path),
    metavar="FOLDER",
    help="Official rows as plain files; defaults to those in the local cache of the hub.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def overlap(folder: Path, model: str, data: Path | None, as_json: bool) -> None:
    """Hold the data of training run FOLDER against every suite's rows.

    Counts the answers (with their prompts) and read windows that share any 13 words in a row with a row of a suite,
    offline editions included. A word is a run of letters and digits, in lower case.
    """
    from hambench.methods.hamburger.base import tokenizer_of
    from hambench.methods.hamburger.data.overlap import overlap as against
    from hambench.models.target import locate

    tokenizer, _ = tokenizer_of(locate(model)[0])
    if tokenizer is None:
        raise DataError(f"{model} has no tokenizer to read the run's texts with; give --model")
    texts = training_texts(folder, tokenizer)
    found = against(texts, protected_rows(data))
    click.echo(json.dumps(dataclasses.asdict(found), indent=1) if as_json else "\n".join(lines_of(found)))


@functools.cache
def protected_rows(data: Path | None) -> Protected:
    """Returns the 13-grams of every suite's rows that this machine has."""
    from hambench.methods.hamburger.data.overlap import Protected
    from hambench.suites.row_texts import row_texts

    protected = Protected()
    for row in row_texts(data=data):
        protected.add(row.name, row.texts)
    return protected


def training_texts(folder: Path, tokenizer: Any) -> list[tuple[str, str]]:
    """Returns name and text of everything that a run trains on or holds out.

    Raises:
        DataError: If the folder holds neither a corpus nor answers.
    """
    from hambench.methods.hamburger.data.corpus_file import CORPUS_NAME, load_corpus, read_notes
    from hambench.methods.hamburger.data.overlap import answer_text, window_text
    from hambench.methods.hamburger.data.pipeline import ANSWERS_NAME
    from hambench.methods.hamburger.data.segment import read_conversations

    if (folder / CORPUS_NAME).is_file():
        num_answers, corpus = read_notes(folder).num_answers, load_corpus(folder)
        sequences = [
            (ids.tolist(), prompt) for ids, prompt in map(corpus.sequence, range(corpus.num_sequences))
        ]
    elif (folder / ANSWERS_NAME).is_file():
        sequences = list(read_conversations(folder / ANSWERS_NAME, tokenizer, eos_id=None))
        num_answers = len(sequences)
    else:
        raise DataError(
            f"{folder} has neither {CORPUS_NAME} nor {ANSWERS_NAME}; give the --out folder of a training run"
        )
    return [
        (f"answer {number}", answer_text(ids, prompt, tokenizer))
        if number < num_answers
        else (f"window {number - num_answers}", window_text(ids, tokenizer))
        for number, (ids, prompt) in enumerate(sequences)
    ]


def lines_of(found: Overlap) -> list[str]:
    """Returns what the command prints."""
    from hambench.methods.hamburger.data.overlap import NGRAM

    lines = [
        f"{found.texts_sharing} of {found.texts:,} training texts share {NGRAM} words in a row with a suite's row",
        f"{found.rows_sharing} of {found.rows:,} rows ({found.row_ngrams:,} distinct {NGRAM}-grams) share them",
    ]
    for each in found.examples:
        lines.append(f"  {each.text}, {each.row}, {each.num_shared} shared: {each.words}")
    return lines
