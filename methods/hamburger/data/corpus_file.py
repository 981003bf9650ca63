"""A corpus on disk, with everything that another run needs in order to train on it and to hold out the same answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from hambench.errors import DataError, ModelError
from hambench.methods.hamburger.training.teacher import Corpus

CORPUS_NAME = "corpus.safetensors"
_KEY = "notes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusNotes:
    """Facts about a corpus that are in none of its lessons."""

    base: str | None
    """Fingerprint of the base whose lessons these are."""
    feature_layers: tuple[int, ...]
    num_answers: int
    """Number of the base's own answers, which come first; after them come windows that it only read, then texts that
    HAMburger weights wrote."""
    held_out: tuple[int, ...]
    """Answers that no run trains on, whatever its seed."""
    replication: tuple[int, ...] = ()
    """How often to train on each answer per epoch; once if empty."""
    kept_apart: dict[str, int] = dataclasses.field(default_factory=dict)
    """``suite_rows`` that the texts were held against, by 13-grams of words, and ``overlapping_answers`` and
    ``overlapping_windows`` that were left out; empty if nothing was checked."""

    num_written: int = 0
    """Number of texts that HAMburger weights wrote."""

    def written(self, num_sequences: int) -> range:
        """Returns the texts that HAMburger weights wrote."""
        return range(num_sequences - self.num_written, num_sequences)

    def train(self, num_sequences: int, *, written_times: int = 1) -> list[int]:
        """Returns the sequences to train on, replicated."""
        held = set(self.held_out)
        times = self.replication or (1,) * self.num_answers
        answers = [i for i in range(self.num_answers) if i not in held for _ in range(times[i])]
        windows = range(self.num_answers, num_sequences - self.num_written)
        return [*answers, *windows, *written_times * list(self.written(num_sequences))]

    def check(self, path: Path, *, base: str | None, feature_layers: Sequence[int]) -> None:
        """Checks that the lessons are those that a run needs.

        Raises:
            ModelError: If they are another base's or another architecture's.
        """
        if self.feature_layers != tuple(feature_layers):
            raise ModelError(
                f"{path} has the features of layers {_listed(self.feature_layers)}, and this run reads layers "
                f"{_listed(feature_layers)}; give the model that the corpus was made with, or --self-distil"
            )
        if self.base != base:
            raise ModelError(
                f"{path} has the lessons of another base (fingerprint {_short(self.base)}, this model's is "
                f"{_short(base)}); give the model that the corpus was made with, or --self-distil"
            )


def describe(corpus: Corpus, notes: CorpusNotes) -> dict[str, int | str]:
    """Returns counts and identity of a corpus, for the provenance."""
    num_read = corpus.num_sequences - notes.num_written
    answered, read = (int(corpus.row_offsets[num]) for num in (notes.num_answers, num_read))
    digest = hashlib.sha256()
    identity, columns = dataclasses.asdict(notes), [corpus.ids, corpus.offsets, corpus.row_offsets]
    if notes.num_written:
        columns.append(corpus.joins)
    else:
        # so that a corpus without such texts has the identity that earlier versions gave it
        del identity["num_written"]
    for column in columns:
        digest.update(column.numpy().tobytes())
    digest.update(msgspec.json.encode(identity))
    return {
        "answers": notes.num_answers,
        "answer_tokens": answered,
        "windows": num_read - notes.num_answers,
        "window_tokens": read - answered,
        **(
            {"written": notes.num_written, "written_tokens": corpus.num_rows - read}
            if notes.num_written
            else {}
        ),
        "held_out": len(notes.held_out),
        "corpus": digest.hexdigest()[:16],
        **notes.kept_apart,
    }


def save_corpus(corpus: Corpus, notes: CorpusNotes, folder: Path) -> None:
    """Writes the corpus and its notes into one file of a run's folder."""
    corpus.save(folder / CORPUS_NAME, {_KEY: msgspec.json.encode(notes).decode()})


def read_notes(folder: Path) -> CorpusNotes:
    """Reads only the notes of the corpus in a run's folder.

    Raises:
        DataError: If there is no corpus, or it is damaged or without notes.
    """
    path = folder / CORPUS_NAME
    if not path.is_file():
        raise DataError(
            f"{folder} has no {CORPUS_NAME}; give the --out folder of a run with --self-distil or --data"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is truncated or damaged: {error}; make it again with --self-distil"
        ) from error
    if _KEY not in metadata:
        raise DataError(
            f"{path} was written by an earlier hambench, without notes; make it again with --self-distil"
        )
    try:
        return msgspec.json.decode(metadata[_KEY], type=CorpusNotes)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path}: its notes are damaged: {error}; make it again with --self-distil"
        ) from error


def load_corpus(folder: Path) -> Corpus:
    """Reads the corpus in a run's folder, whose notes :func:`read_notes` has read."""
    return Corpus.load(folder / CORPUS_NAME)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:12]
