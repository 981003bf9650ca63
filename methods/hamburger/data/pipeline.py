"""Pipeline of ``hambench hamburger train``: from data, or from no data at all, to weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hambench.engine.text import encode_text
from hambench.errors import DataError, ModelError
from hambench.methods.hamburger.base import tokenizer_of
from hambench.methods.hamburger.data.corpus_file import (
    CORPUS_NAME,
    CorpusNotes,
    load_corpus,
    read_notes,
    save_corpus,
)
from hambench.methods.hamburger.data.overlap import NGRAM, Protected, answer_text, window_text
from hambench.methods.hamburger.data.segment import Segmented, read_conversations, read_segments, segment
from hambench.methods.hamburger.data.self_distill import SelfDistillation, answer_prompts
from hambench.methods.hamburger.training.budget import RunOptions
from hambench.methods.hamburger.training.recipes import Recipe
from hambench.methods.hamburger.training.run_folder import RunFolder
from hambench.methods.hamburger.training.teacher import Corpus, CorpusRoom, study
from hambench.methods.hamburger.training.trainer import Trainer, split_held_out

if TYPE_CHECKING:
    from hambench.decoding import Target

_WINDOWS_AT_ONCE = 32
ANSWERS_NAME = "answers.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSource:
    """A JSONL file, and how often training repeats its rows."""

    path: Path
    times: int = 1

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Parses ``FILE`` or ``FILE:TIMES``.

        Raises:
            DataError: If the file does not exist or TIMES is not a number.
        """
        path, _, times = text.rpartition(":")
        source = cls(path=Path(path), times=int(times)) if path and times.isdigit() else cls(path=Path(text))
        if source.times < 1:
            raise DataError(f"{text}: rows must be repeated at least once")
        if not source.path.is_file():
            raise DataError(f"there is no file {source.path}")
        return source


def train(
    model_name: str,
    recipe: Recipe,
    options: RunOptions,
    *,
    sources: Sequence[DataSource] = (),
    segments: Path | None = None,
    self_distillation: SelfDistillation | None = None,
    num_windows: int = 0,
    corpus_folder: Path | None = None,
    protected: Callable[[], Protected] | None = None,
    engine: Callable[[], Target] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Trainer:
    """Trains and writes the checkpoint to ``options.out``.

    Args:
        model_name: Name of the base.
        recipe: Training recipe.
        options: Budget, output folder, and whether to resume.
        sources: Conversations. Give exactly one of ``sources``, ``segments``, ``self_distillation`` and
            ``corpus_folder``.
        segments: File of ``hambench hamburger segment`` (published objective only).
        self_distillation: Settings under which the base answers prompts itself.
        num_windows: Windows of installed text that the base reads as well (distilling objective only).
        corpus_folder: Folder of another run, whose answers, windows, lessons and held-out answers to reuse
            (distilling objective only).
        protected: Returns texts that nothing may be trained on: answers (prompts included), windows, and texts that
            weights write, are left out if they share a 13-gram of words with them. It is not called for a stored
            corpus, for ``segments``, or for a base without a tokenizer, whose ids are no words.
        engine: Loads the base on the engine that decodes, for recipes whose weights write texts (``written_share``).
        report: Receives a line per stage of the work.

    Raises:
        DataError: If data can't be used; raised before the model is loaded if possible.
        ModelError: If the output folder is in use, or the base can't be trained.
    """
    given = [bool(sources), *(each is not None for each in (segments, self_distillation, corpus_folder))]
    if sum(given) != 1:
        raise DataError("give exactly one of --data, --segments, --self-distil and --corpus")
    if segments is not None and recipe.objective != "published":
        raise DataError(
            f"recipe {recipe.name!r} cuts segments itself, anew for each epoch; give --data instead"
        )
    if num_windows and recipe.objective != "distil":
        raise DataError(f"recipe {recipe.name!r} learns from answers only; leave --read out")
    if recipe.written_share and options.start_from is None:
        raise DataError(
            f"recipe {recipe.name!r} learns from texts that weights write (written_share = {recipe.written_share:g}); "
            "give --start-from, the weights"
        )
    if recipe.written_share and engine is None:
        raise DataError("engine must load the base for decoding where written_share is above 0, got None")
    if corpus_folder is not None:
        if recipe.objective != "distil":
            raise DataError(
                f"recipe {recipe.name!r} learns from no base's lessons; give --data instead of --corpus"
            )
        if num_windows:
            raise DataError("the corpus has windows of its own; leave --read out")
        read_notes(corpus_folder)
        recipe = recipe.without_data_share()
    max_steps = 4
    rows = read_segments(segments, max_length=max_steps) if segments is not None else []
    files = RunFolder(options.out)
    own_corpus, own_answers = (
        options.resume and (options.out / name).is_file() for name in (CORPUS_NAME, ANSWERS_NAME)
    )
    if own_corpus or own_answers:
        # a run that was stopped while it made its data has no save yet
        options = dataclasses.replace(options, resume=files.has_state)
    files.check(resume=options.resume)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model_name, recipe, options)
    if rows:
        trainer.train_segmented(rows)
        return trainer
    if corpus_folder is None and own_corpus:
        corpus_folder = options.out
    trainer.model.to(trainer.accelerator.device)
    if corpus_folder is not None:
        apart = _Apart(trainer, protected if recipe.written_share else None, report)
        _train(trainer, *_stored(trainer, corpus_folder, report), apart, engine, report)
        return trainer
    with trainer.as_it_was() as base:
        if self_distillation is not None:
            answers = options.out / ANSWERS_NAME
            if not own_answers:
                answer_prompts(trainer, base, self_distillation, answers, report)
            sources = [DataSource(path=answers)]
        sequences, replication = _sequences(trainer, sources, report)
        apart = _Apart(trainer, protected, report)
        sequences, replication = apart.answers(sequences, replication)
        if recipe.objective == "published":
            report(f"cutting {len(sequences)} responses in segments")
            rows = _in_order(list(segment(base, sequences, recipe.strategy)), sequences)
        else:
            _, held = split_held_out(len(sequences), options.held_out_share, seed=options.seed)
            windows = apart.windows(_windows(trainer, num_windows, report))
            notes = CorpusNotes(
                base=trainer.reference().fingerprint,
                feature_layers=trainer.architecture.feature_layers,
                num_answers=len(sequences),
                held_out=tuple(held),
                replication=tuple(replication),
                kept_apart=apart.counts,
            )
            sequences += windows
            corpus = _corpus(trainer, base, sequences, notes, report)
    if recipe.objective == "published":
        trainer.train_segmented(rows, replication=replication)
    else:
        _train(trainer, corpus, notes, apart, engine, report)
    return trainer


def _train(
    trainer: Trainer,
    corpus: Corpus,
    notes: CorpusNotes,
    apart: _Apart,
    engine: Callable[[], Target] | None,
    report: Callable[[str], None],
) -> None:
    if trainer.recipe.written_share and engine is not None:
        from hambench.methods.hamburger.data.written import with_written

        corpus, notes = with_written(trainer, corpus, notes, engine=engine, keep=apart.written, report=report)
    trainer.train_corpus(corpus, notes)
    for stage in trainer.idle_stages:
        report(f"stage {stage} took no step: its time was over before it began; give more --minutes")


class _Apart:
    """Leaves out what shares words with protected texts, and counts it."""

    def __init__(
        self,
        trainer: Trainer,
        protected: Callable[[], Protected] | None,
        report: Callable[[str], None],
    ) -> None:
        self._report = report
        self._tokenizer = None if protected is None else tokenizer_of(trainer.folder)[0]
        self._protected: Protected | None = None
        self.counts: dict[str, int] = {}
        if protected is not None and self._tokenizer is None:
            report(f"{trainer.model_name} has no tokenizer: its ids are not held against the suites' rows")
        elif protected is not None:
            self._protected = protected()
            self.counts["suite_rows"] = len(self._protected.names)

    def answers(
        self, sequences: list[tuple[list[int], int]], replication: list[int]
    ) -> tuple[list[tuple[list[int], int]], list[int]]:
        kept = self._kept("answers", sequences, answer_text)
        if len(kept) < 2:
            raise DataError(
                f"training needs at least 2 responses (one is held out), got {len(kept)} that share no "
                f"{NGRAM} words in a row with a suite's row"
            )
        return [sequences[i] for i in kept], [replication[i] for i in kept]

    def windows(self, sequences: list[tuple[list[int], int]]) -> list[tuple[list[int], int]]:
        kept = self._kept("windows", sequences, lambda ids, _, tokenizer: window_text(ids, tokenizer))
        return [sequences[i] for i in kept]

    def written(self, sequences: Sequence[tuple[list[int], int]]) -> tuple[list[int], dict[str, int]]:
        """Returns which texts that weights wrote may be trained on, and the counts."""
        return self._kept("written_texts", sequences, answer_text), self.counts

    def _kept(
        self,
        kind: str,
        sequences: Sequence[tuple[list[int], int]],
        text_of: Callable[[Sequence[int], int, Any], str],
    ) -> list[int]:
        if self._protected is None:
            return list(range(len(sequences)))
        texts = (text_of(ids, prompt, self._tokenizer) for ids, prompt in sequences)
        kept = [i for i, text in enumerate(texts) if not self._protected.shared(text)]
        num = self.counts[f"overlapping_{kind}"] = len(sequences) - len(kept)
        what = kind.replace("_", " ")
        self._report(
            f"{num} of {len(sequences)} {what} share {NGRAM} words in a row with a suite's row: left out"
        )
        return kept


def _stored(trainer: Trainer, folder: Path, report: Callable[[str], None]) -> tuple[Corpus, CorpusNotes]:
    notes = read_notes(folder)
    notes.check(
        folder / CORPUS_NAME,
        base=trainer.reference().fingerprint,
        feature_layers=trainer.architecture.feature_layers,
    )
    corpus = load_corpus(folder)
    report(
        f"{notes.num_answers} answers and {corpus.num_sequences - notes.num_answers} windows from {folder}"
    )
    return corpus, notes


def _windows(trainer: Trainer, count: int, report: Callable[[str], None]) -> list[tuple[list[int], int]]:
    from hambench.methods.hamburger.data.windows import read_windows

    if not count:
        return []
    tokenizer, _ = tokenizer_of(trainer.folder)
    if tokenizer is None:
        raise ModelError(
            f"{trainer.model_name} has no tokenizer, so it can't read anything; leave --read out"
        )
    windows = list(
        read_windows(
            lambda text: encode_text(text, tokenizer, add_special_tokens=False),
            count,
            seed=trainer.options.seed,
        )
    )
    report(f"{len(windows)} windows of installed text")
    return windows


def _sequences(
    trainer: Trainer, sources: Sequence[DataSource], report: Callable[[str], None]
) -> tuple[list[tuple[list[int], int]], list[int]]:
    tokenizer, _ = tokenizer_of(trainer.folder)
    sequences: list[tuple[list[int], int]] = []
    replication: list[int] = []
    for source in sources:
        eos_id = tokenizer.eos_token_id if tokenizer is not None else None
        rows = list(read_conversations(source.path, tokenizer, eos_id=eos_id))
        fitting = [row for row in rows if len(row[0]) <= trainer.shape.max_positions]
        if len(fitting) < len(rows):
            report(f"{source.path.name}: {len(rows) - len(fitting)} rows exceed the context and are left out")
        sequences += fitting
        replication += [source.times] * len(fitting)
    if len(sequences) < 2:
        raise DataError(f"training needs at least 2 responses (one is held out), got {len(sequences)}")
    return sequences, replication


def _corpus(
    trainer: Trainer,
    base: Any,
    sequences: Sequence[tuple[list[int], int]],
    notes: CorpusNotes,
    report: Callable[[str], None],
) -> Corpus:
    """Returns the base's lessons on all answers, and on as many windows as time allows, and writes them.

    A single process returns the written one, whose pages a machine that is short of memory drops and reads again.
    """
    num_answers, num_read = notes.num_answers, notes.num_answers
    report(f"the base reads {num_answers} answers and up to {len(sequences) - num_answers} windows")
    layers = trainer.architecture.feature_layers
    room = CorpusRoom(sequences)
    for index, lesson in study(base, sequences[:num_answers], feature_layers=layers):
        room.add(index, lesson)
    while num_read < len(sequences):
        part = sequences[num_read : num_read + _WINDOWS_AT_ONCE]
        for index, lesson in study(base, part, feature_layers=layers):
            room.add(num_read + index, lesson)
        num_read += len(part)
        if trainer.clock.is_past(trainer.recipe.data_share):
            break
    corpus = room.first(num_read)
    answered = int(corpus.row_offsets[num_answers])
    report(f"{answered} answer tokens, {corpus.num_rows - answered} read, {trainer.clock.seconds:.0f} s")
    save_corpus(corpus, notes, trainer.options.out)
    # several processes each make a corpus, and the file is the last one's
    return corpus if trainer.accelerator.num_processes > 1 else load_corpus(trainer.options.out)


def _in_order(rows: Sequence[Segmented], sequences: Sequence[tuple[list[int], int]]) -> list[Segmented]:
    """Returns segmented rows in the order of their sequences (batches of similar length shuffle them)."""
    by_ids = {(row.ids, row.prompt_tokens): row for row in rows}
    return [by_ids[tuple(ids), prompt] for ids, prompt in sequences]
