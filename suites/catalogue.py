"""The catalogue of suites: each task's category, data source and lm-eval task file.

It is pure data; it neither imports lm-eval nor reads files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hambench.errors import UnknownNameError

Suite = Literal["standard", "longbench", "longbench-e", "efficiency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """One task of a suite, with the sources of its rows and its lm-eval configuration."""

    name: str
    """Name to show and store: LongBench's own, or lm-eval's for the standard tasks."""
    suite: str
    category: str
    config: str
    """lm-eval's task file, relative to its ``tasks`` folder."""
    files: tuple[str, ...]
    """File names to try in a data folder and its subfolders, in order."""
    columns: tuple[str, ...]
    """Columns that every row must have."""
    hub: tuple[str, str | None, str] | None
    """Data set on the hub, its configuration and its split; ``None`` for built rows."""
    num_rows: int
    """Number of rows of the complete official data."""
    metric: str
    """Headline metric, as :func:`hambench.suites.harness.replay.metric_key` names it."""
    language: str = "en"
    chat: bool = True
    """Whether to apply an instruct model's chat template."""
    truncation: Literal["error", "middle"] = "error"
    runs_code: bool = False
    """Whether scoring runs programs that the model wrote."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys that replace those of lm-eval's task file."""
    multiturn: bool = True
    """Whether few-shot examples become separate chat turns under a chat template (lm-eval's default)."""
    cluster: str = ""
    """Name shared by tasks whose rows of equal number are the same question, e.g. in several languages."""
    shown_by: Literal["task", "category"] = "task"
    """Whether figures with one panel per group show this task on its own or within its category."""
    by_document: bool = False
    """Whether rows with the same context come from one document and so are not independent."""

    @property
    def file_names(self) -> tuple[str, ...]:
        """Returns all file names to try for the rows: the public ones, then the task's own."""
        return (*self.files, f"{self.name}.jsonl", f"{self.name}.tsv", f"{self.name}/test.jsonl")


SINGLE, MULTI, SUMMARY, FEW_SHOT, SYNTHETIC, CODE = (
    "single-doc",
    "multi-doc",
    "summarisation",
    "few-shot",
    "synthetic",
    "code",
)

NO_CHAT = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
"""Tasks that LongBench prompts without a chat template."""

FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Tasks for which LongBench scores only the first line."""

CLASSIFIED = frozenset({"trec", "lsht"})
"""Tasks whose metric needs all class names."""

# name: category, rows, language; rows as published in LongBench's table of tasks
_LONGBENCH: dict[str, tuple[str, int, str]] = {
    "narrativeqa": (SINGLE, 200, "en"),
    "qasper": (SINGLE, 200, "en"),
    "multifieldqa_en": (SINGLE, 150, "en"),
    "multifieldqa_zh": (SINGLE, 200, "zh"),
    "hotpotqa": (MULTI, 200, "en"),
    "2wikimqa": (MULTI, 200, "en"),
    "musique": (MULTI, 200, "en"),
    "dureader": (MULTI, 200, "zh"),
    "gov_report": (SUMMARY, 200, "en"),
    "qmsum": (SUMMARY, 200, "en"),
    "multi_news": (SUMMARY, 200, "en"),
    "vcsum": (SUMMARY, 200, "zh"),
    "trec": (FEW_SHOT, 200, "en"),
    "triviaqa": (FEW_SHOT, 200, "en"),
    "samsum": (FEW_SHOT, 200, "en"),
    "lsht": (FEW_SHOT, 200, "zh"),
    "passage_count": (SYNTHETIC, 200, "en"),
    "passage_retrieval_en": (SYNTHETIC, 200, "en"),
    "passage_retrieval_zh": (SYNTHETIC, 200, "zh"),
    "lcc": (CODE, 500, "code"),
    "repobench-p": (CODE, 500, "code"),
}

# rows of LongBench-E: about a hundred per length bucket
_LONGBENCH_E: dict[str, int] = {
    "qasper": 224,
    "multifieldqa_en": 150,
    "hotpotqa": 300,
    "2wikimqa": 300,
    "gov_report": 300,
    "multi_news": 294,
    "trec": 300,
    "triviaqa": 300,
    "samsum": 300,
    "passage_count": 300,
    "passage_retrieval_en": 300,
    "lcc": 300,
    "repobench-p": 300,
}


def _longbench(name: str, *, extended: bool) -> TaskEntry:
    category, num_rows, language = _LONGBENCH[name]
    stem = f"{name}_e" if extended else name
    folders = ("longbench_mini", "longbench", "LongBench", "data", "")
    return TaskEntry(
        name=stem,
        suite="longbench-e" if extended else "longbench",
        category=category,
        config=f"longbench/{stem}.yaml",
        files=tuple(f"{folder}/{stem}.jsonl".lstrip("/") for folder in folders),
        columns=("context", "answers", *(("all_classes",) if name in CLASSIFIED else ())),
        hub=("Xnhyacinth/LongBench", stem, "test"),
        num_rows=_LONGBENCH_E[name] if extended else num_rows,
        metric="score",
        language=language,
        chat=name not in NO_CHAT,
        truncation="middle",
        multiturn=False,
        shown_by="category",
        # narrativeqa and qasper ask several questions per document
        by_document=True,
    )


_STANDARD = (
    TaskEntry(
        name="ifeval",
        suite="standard",
        category="instructions",
        config="ifeval/ifeval.yaml",
        files=("ifeval/input_data.jsonl", "input_data.jsonl", "ifeval.jsonl"),
        columns=("key", "prompt", "instruction_id_list", "kwargs"),
        hub=("google/IFEval", None, "train"),
        num_rows=541,
        metric="prompt_level_strict_acc",
    ),
    TaskEntry(
        name="mgsm_en_cot_en",
        suite="standard",
        category="mathematics",
        config="mgsm/en_cot/mgsm_en_cot_en.yaml",
        files=("mgsm/mgsm_en.tsv", "mgsm_en.tsv"),
        columns=("question", "answer_number"),
        hub=("juletxara/mgsm", "en", "test"),
        num_rows=250,
        metric="exact_match,flexible-extract",
        settings={"training_split": None},
        cluster="mgsm",
    ),
    TaskEntry(
        name="gsm8k_cot_llama",
        suite="standard",
        category="mathematics",
        config="gsm8k/gsm8k-cot-llama.yaml",
        files=("gsm8k/test.jsonl", "gsm8k.jsonl"),
        columns=("question", "answer"),
        hub=("openai/gsm8k", "main", "test"),
        num_rows=1319,
        metric="exact_match,flexible-extract",
    ),
    TaskEntry(
        name="arc_challenge_chat",
        suite="standard",
        category="knowledge",
        config="arc/arc_challenge_chat.yaml",
        files=("arc_challenge/test.jsonl", "arc_challenge.jsonl", "ARC-Challenge-Test.jsonl"),
        columns=("question", "choices", "answerKey"),
        hub=("allenai/ai2_arc", "ARC-Challenge", "test"),
        num_rows=1172,
        metric="exact_match,remove_whitespace",
        settings={"training_split": None, "validation_split": None, "fewshot_split": None},
    ),
    TaskEntry(
        name="humaneval_instruct",
        suite="standard",
        category="code",
        config="humaneval/humaneval_instruct.yaml",
        files=(
            "humaneval/HumanEval.jsonl.gz",
            "humaneval/HumanEval.jsonl",
            "HumanEval.jsonl.gz",
            "HumanEval.jsonl",
        ),
        columns=("task_id", "prompt", "test", "entry_point"),
        hub=("openai/openai_humaneval", None, "test"),
        num_rows=164,
        metric="pass@1,create_test",
        runs_code=True,
    ),
    TaskEntry(
        name="mbpp_instruct",
        suite="standard",
        category="code",
        config="mbpp/mbpp_instruct.yaml",
        files=("mbpp/mbpp.jsonl", "mbpp.jsonl"),
        columns=("task_id", "text", "code", "test_list"),
        hub=("google-research-datasets/mbpp", "full", "test"),
        num_rows=500,
        metric="pass_at_1,extract_code",
        runs_code=True,
    ),
)

ENTRIES: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        *_STANDARD,
        *(_longbench(name, extended=False) for name in _LONGBENCH),
        *(_longbench(name, extended=True) for name in _LONGBENCH_E),
    )
}

# the paper's LongBench figure leaves out few-shot learning and code
_PAPER_LONGBENCH = tuple(n for n, (category, _, _) in _LONGBENCH.items() if category not in (FEW_SHOT, CODE))

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "standard": {
            "gsm8k_cot_llama": {"num_fewshot": 1, "multiturn": False},
            "mgsm_en_cot_en": {"num_fewshot": 0, "max_gen_toks": 2048},
            "ifeval": {},
            "arc_challenge_chat": {"num_fewshot": 0},
            "humaneval_instruct": {},
            "mbpp_instruct": {},
        },
        "longbench": {name: {} for name in _PAPER_LONGBENCH},
    }
}
"""Maps presets to suites to tasks, each with the settings that differ from lm-eval's."""

SUITES: dict[str, str] = {
    "standard": "Six generative tasks: instructions, mathematics, knowledge, code",
    "longbench": "LongBench: 21 tasks with long prompts, in six categories",
    "longbench-e": "LongBench-E: 13 tasks with evenly spread lengths",
    "efficiency": "Fixed prompts and output lengths, for speed only (no scores)",
}


AVERAGES: dict[str, str] = {
    "longbench": "categories",
    "longbench-e": "categories and lengths",
    "offline-long": "categories",
}
"""The averages that a suite's benchmark publishes; see :mod:`hambench.analysis.suite_averages`."""


def tasks_of(suite: str) -> tuple[TaskEntry, ...]:
    """Returns the tasks of ``suite`` in run order."""
    return tuple(entry for entry in ENTRIES.values() if entry.suite == suite)


def preset_of(preset: str | None, suite: str) -> dict[str, dict[str, Any]] | None:
    """Returns the tasks and settings of a preset; ``None`` without a preset.

    Raises:
        UnknownNameError: If there is no such preset, or it does not cover ``suite``.
    """
    if preset is None:
        return None
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    if suite not in PRESETS[preset]:
        raise UnknownNameError(f"suite of preset {preset!r}", suite, PRESETS[preset])
    settings: dict[str, dict[str, Any]] = PRESETS[preset][suite]
    return settings
