"""Texts that HAMburger weights write, which the unmerged base then reads: learning on-policy.

Segments that are cut out of the base's answers hold the base's own tokens. Decoding stores what the micro-step decoder
wrote, wherever the stop head went on, errors included, and goes on from there. Here the weights that a run starts from
decode prompts of the training answers, and the base reads the texts. Its lessons say how to read those very slots, and
what to write behind them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from hambench.decoding import DecodingMethod, SamplingParams
from hambench.engine.requests.batch import Ask, Batch, SequenceFailed
from hambench.errors import DataError
from hambench.methods.hamburger.base import tokenizer_of
from hambench.methods.hamburger.checkpoint import digest
from hambench.methods.hamburger.config import HamburgerConfig
from hambench.methods.hamburger.data.corpus_file import CorpusNotes, describe
from hambench.methods.hamburger.training.teacher import Corpus, CorpusRoom, study

if TYPE_CHECKING:
    from hambench.decoding import Target
    from hambench.methods.hamburger.training.trainer import Trainer

Keep = Callable[[Sequence[tuple[list[int], int]]], tuple[list[int], dict[str, int]]]
"""Returns which sequences may be trained on, and counts for the notes."""

WRITTEN_NAME = "written.safetensors"
MAX_NEW_TOKENS = 128
BATCH = 12
"""Sequences of one confidence at once: five rows each fill the 64 rows of a native call."""
_DECODING = 0.7
"""Part of the time for decoding; the base's reading takes the rest."""
_READ_AT_ONCE = 32
_KEY = "written"


class WrittenText(NamedTuple):
    """A text and its slots."""

    ids: list[int]
    """Prompt and answer."""
    num_prompt_tokens: int
    segments: list[int]
    """Number of tokens in each slot of the answer."""


def write_texts(
    methods: Sequence[tuple[DecodingMethod, Iterable[Sequence[int]]]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    eos_ids: Collection[int] = (),
    batch: int = BATCH,
    may_begin: Callable[[], bool] = lambda: True,
) -> Iterator[WrittenText]:
    """Yields texts as they end.

    Args:
        methods: HAMburger at each confidence, with its prompts of at least one token each.
        max_new_tokens: Most tokens of an answer.
        eos_ids: Ids that end an answer, which includes them.
        batch: Most sequences of each method at once.
        may_begin: Asked before a prompt begins, but for the first; once it returns False, only those that have begun
            are finished.

    Raises:
        Exception: Whatever ends a sequence.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens)
    batches: list[tuple[Batch[int], Iterator[Sequence[int]]]] = [
        (Batch(method, batch), iter(prompts)) for method, prompts in methods
    ]
    running: dict[int, WrittenText] = {}
    is_open, num_begun = True, 0
    while True:
        for each, waiting in batches:
            while is_open and each.has_room and (prompt := next(waiting, None)) is not None:
                if num_begun and not may_begin():
                    is_open = False
                    break
                each.add(num_begun, Ask(prompt_ids=prompt, params=params, eos_ids=eos_ids))
                running[num_begun] = WrittenText(list(prompt), len(prompt), [])
                num_begun += 1
            for event in each.round() if each.num_sequences else ():
                if isinstance(event, SequenceFailed):
                    raise event.error
                text = running[event.key]
                text.ids.extend(event.step.tokens)
                text.segments.append(len(event.step.tokens))
                if event.finish is not None:
                    yield running.pop(event.key)
        if not running:
            return


def with_written(
    trainer: Trainer,
    corpus: Corpus,
    notes: CorpusNotes,
    *,
    engine: Callable[[], Target],
    keep: Keep,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Corpus, CorpusNotes]:
    """Returns a corpus and its notes with texts that the run's first weights write, which the run's folder keeps.

    A run that is resumed finds them there. Without a time limit each training answer's prompt is decoded once, else at
    each confidence, at most.

    Args:
        trainer: The run, whose ``start_from`` has the weights.
        corpus: Lessons on the base's answers.
        notes: What the corpus consists of.
        engine: Loads the base on the engine to decode with.
        keep: Chooses the texts that may be trained on.
        report: Receives lines on the progress.

    Raises:
        DataError: If no prompt is short enough, no text may be trained on, or the folder has texts of other weights or
            of another corpus.
    """
    options = trainer.options
    assert options.start_from is not None
    path = options.out / WRITTEN_NAME
    origin = {"weights": digest(options.start_from), "corpus": str(describe(corpus, notes)["corpus"])}
    # one process decodes, and all train on its texts
    if trainer.accelerator.is_main_process and not (options.resume and path.is_file()):
        sequences, segments, kept_apart = _texts(trainer, corpus, notes, engine, keep, report)
        written = _lessons(trainer, sequences, segments, report)
        written.save(path, {_KEY: json.dumps({"origin": origin, "kept_apart": kept_apart})})
    trainer.accelerator.wait_for_everyone()
    written, kept_apart = _load(path, origin)
    notes = dataclasses.replace(
        notes, num_written=written.num_sequences, kept_apart={**notes.kept_apart, **kept_apart}
    )
    return Corpus.joined([corpus, written]), notes


def _texts(
    trainer: Trainer,
    corpus: Corpus,
    notes: CorpusNotes,
    engine: Callable[[], Target],
    keep: Keep,
    report: Callable[[str], None],
) -> tuple[list[tuple[list[int], int]], list[list[int]], dict[str, int]]:
    """Returns sequences, the slots of each, and what was left out."""
    recipe, options, clock = trainer.recipe, trainer.options, trainer.clock
    target = engine()
    most = target.context_length - MAX_NEW_TOKENS
    prompts = []
    for index in sorted({*notes.train(notes.num_answers)}):
        ids, num_prompt = corpus.sequence(index)
        if num_prompt <= most:
            prompts.append(ids[:num_prompt].tolist())
    if not prompts:
        raise DataError(
            f"no answer of the corpus has a prompt of at most {most} tokens, so the weights have nothing to continue; "
            "set written_share = 0"
        )
    rng = random.Random(f"written {options.seed}")
    confidences = recipe.written_confidences
    shuffled = rng.sample(prompts, len(prompts))
    methods = [
        (
            HamburgerConfig(checkpoint=str(options.start_from), confidence=confidence).build(target),
            shuffled[place :: len(confidences)]
            if options.minutes is None
            else rng.sample(prompts, len(prompts)),
        )
        for place, confidence in enumerate(confidences)
    ]
    report(f"{options.start_from} decodes up to {sum(len(own) for _, own in methods)} prompts")
    _, eos_ids = tokenizer_of(trainer.folder)
    until = recipe.data_share + _DECODING * recipe.written_share
    texts = list(write_texts(methods, eos_ids=eos_ids, may_begin=lambda: not clock.is_past(until)))
    # short ones end first, and the time for reading may end before all are read
    rng.shuffle(texts)
    kept, counts = keep([(text.ids, text.num_prompt_tokens) for text in texts])
    if not kept:
        raise DataError(
            "every text that the weights wrote shares words with a suite's row; set written_share = 0"
        )
    chosen = [texts[i] for i in kept]
    return [(text.ids, text.num_prompt_tokens) for text in chosen], [text.segments for text in chosen], counts


def _lessons(
    trainer: Trainer,
    sequences: Sequence[tuple[list[int], int]],
    segments: Sequence[Sequence[int]],
    report: Callable[[str], None],
) -> Corpus:
    """Returns the base's lessons on as many of the texts as time allows."""
    recipe, clock = trainer.recipe, trainer.clock
    room, num_read = CorpusRoom(sequences), 0
    with trainer.as_it_was() as base:
        while num_read < len(sequences) and not (num_read and clock.is_past(recipe.data_ends)):
            part = sequences[num_read : num_read + _READ_AT_ONCE]
            for index, lesson in study(base, part, feature_layers=trainer.architecture.feature_layers):
                room.add(num_read + index, lesson)
            num_read += len(part)
    written = dataclasses.replace(
        room.first(num_read), joins=torch.cat([_joins(each) for each in segments[:num_read]])
    )
    num_slots = sum(map(len, segments[:num_read]))
    report(
        f"{num_read} texts, {written.num_rows} tokens in {num_slots} slots ({written.num_rows / num_slots:.2f} per "
        f"slot), {clock.seconds:.0f} s"
    )
    return written


def _load(path: Path, origin: dict[str, str]) -> tuple[Corpus, dict[str, int]]:
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})[_KEY])
        written = Corpus.load(path)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is truncated or damaged: {error}; remove it, and it is made again"
        ) from error
    for what, now in origin.items():
        if notes["origin"][what] != now:
            raise DataError(
                f"{path} has texts of another run (its {what} {notes['origin'][what][:12]}, now {now[:12]}); resume "
                "with the options that it was begun with, or give another --out"
            )
    return written, notes["kept_apart"]


def _joins(segments: Sequence[int]) -> torch.Tensor:
    """Returns, for each token, whether it shares the slot of the token before."""
    joins = torch.ones(sum(segments), dtype=torch.bool)
    joins[torch.tensor([0, *itertools.accumulate(segments[:-1])])] = False
    return joins
