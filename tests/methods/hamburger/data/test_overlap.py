"""Training texts against the suites' rows, by 13-grams of words."""

import dataclasses
import json
import tracemalloc

import pytest
from cli_calls import invoke
from fakes import save_tiny_model
from fakes_hamburger import with_shape

from hambench.cli import _hamburger_overlap
from hambench.cli._hamburger_overlap import protected_rows
from hambench.errors import DataError
from hambench.methods.hamburger.checkpoint import load
from hambench.methods.hamburger.data.corpus_file import CORPUS_NAME, load_corpus, read_notes
from hambench.methods.hamburger.data.overlap import Protected, ngrams, overlap, words_of
from hambench.methods.hamburger.data.pipeline import DataSource, train
from hambench.methods.hamburger.training.budget import RunOptions
from hambench.methods.hamburger.training.recipes import SMALL
from hambench.suites.offline import OFFLINE
from hambench.suites.row_texts import row_texts

RECIPE = dataclasses.replace(SMALL, micro_batch=16, batch_size=4, lora_rank=2, thresholds=(0.7, 0.9))
STEPS = {"micro": 1, "reader": 1, "student": 1}
THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def protected_by(*rows):
    protected = Protected()
    for number, texts in enumerate(rows):
        protected.add(f"row {number}", texts)
    return protected


def test_words_are_runs_of_letters_and_digits_in_lower_case():
    assert words_of("def Snake_case(x1):\n    return  'Ünï—x'") == [
        "def", "snake", "case", "x1", "return", "ünï", "x"
    ]  # fmt: skip
    assert list(ngrams(THIRTEEN)) == [tuple(THIRTEEN.split())]
    assert len(list(ngrams(f"{THIRTEEN} more words"))) == 3
    assert list(ngrams(THIRTEEN.removeprefix("one "))) == []


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not():
    protected = protected_by(["nothing here"], [f"before {THIRTEEN} after"], [THIRTEEN, "else"])
    changed = THIRTEEN.replace("seven", "Seven").replace(" ", ",\n")
    found = overlap(
        [
            ("a", f"x {changed} y"),
            ("b", THIRTEEN.replace("seven", "7")),
            ("c", THIRTEEN[4:]),
            ("d", f"before {changed}"),
        ],
        protected,
    )
    assert (found.texts, found.texts_sharing) == (4, 2)
    assert (found.rows, found.rows_sharing) == (3, 2)
    assert found.row_ngrams == 3
    # the text that shares most comes first
    assert [(each.text, each.num_shared, each.row) for each in found.examples] == [
        ("d", 2, "row 1"),
        ("a", 1, "row 1"),
    ]
    assert found.examples[1].words == THIRTEEN


def test_no_gram_spans_two_texts_of_a_row():
    first, second = THIRTEEN.split(" seven ")
    assert protected_by([first, f"seven {second}"]).shared(THIRTEEN) == {}
    assert list(protected_by([THIRTEEN]).shared(THIRTEEN).values()) == [[0]]


def test_a_table_of_many_rows_takes_few_bytes_for_each_gram():
    tracemalloc.start()
    protected = protected_by(*([" ".join(f"w{row}x{i}" for i in range(1000))] for row in range(100)))
    num = protected.num_ngrams
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num == 100 * (1000 - 12)
    # long official rows have some ten million
    assert taken < 40 * num


def test_rows_that_are_added_after_a_question_count_too():
    protected = protected_by([THIRTEEN])
    assert list(protected.shared(THIRTEEN).values()) == [[0]]
    protected.add("row 1", ["nothing"])
    protected.add("row 2", [f"{THIRTEEN} more"])
    assert list(protected.shared(f"{THIRTEEN} more").values()) == [[0, 2], [2]]


@pytest.fixture(scope="module")
def all_rows():
    return list(row_texts())


def test_every_row_of_every_offline_task_is_held_against(all_rows):
    per_task = {}
    for row in all_rows:
        suite, task, number = row.name.split("/")
        assert int(number) == per_task.get((suite, task), 0)
        per_task[suite, task] = int(number) + 1
    offline = {(each.entry.suite, each.entry.name): each.entry.num_rows for each in OFFLINE.values()}
    assert {key: num for key, num in per_task.items() if key[0].startswith("offline")} == offline
    assert all(any(words_of(text) for text in row.texts) for row in all_rows)


def test_official_rows_are_read_from_a_data_folder(tmp_path):
    row = {"question": f"How many are {THIRTEEN}?", "answer": "#### 13"}
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(row))
    rows = [each for each in row_texts(data=tmp_path) if each.name.startswith("standard/gsm8k_cot_llama/")]
    assert [each.name for each in rows] == ["standard/gsm8k_cot_llama/0"]
    assert row["question"] in rows[0].texts


def test_official_rows_come_from_the_local_cache_and_nothing_is_downloaded(monkeypatch):
    import datasets

    asked = []

    def load(path, **_):
        asked.append(datasets.config.HF_HUB_OFFLINE)
        raise FileNotFoundError(path)

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("hambench.suites.row_texts.cached_data_set", lambda name: name == "openai/gsm8k")
    monkeypatch.setattr("hambench.suites.row_texts.OFFLINE", {})
    assert list(row_texts()) == []
    assert asked
    assert all(asked)
    assert datasets.config.HF_HUB_OFFLINE is before


@pytest.fixture
def run_with_overlaps(tmp_path, monkeypatch):
    """A folder of data in which every fourth answer shares words with a row, and the run's arguments."""
    monkeypatch.setattr(_hamburger_overlap, "protected_rows", lambda data: protected_by([f"so: {THIRTEEN}"]))
    folder = save_tiny_model(tmp_path / "tiny", with_shape(tie_embeddings=True, max_positions=512))
    rows = [
        {
            "prompt": f"Question {i}: " + (THIRTEEN if i % 4 == 0 else "count"),
            "response": f"Answer {i} is long enough.",
        }
        for i in range(12)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder, tmp_path / "data.jsonl"


def test_training_leaves_out_what_overlaps_and_says_so(run_with_overlaps, tmp_path, capsys):
    folder, data = run_with_overlaps
    said = []
    for name, protected in (("apart", lambda: protected_by([f"so: {THIRTEEN}"])), ("whole", None)):
        train(
            str(folder),
            RECIPE,
            RunOptions(out=tmp_path / name, steps=STEPS, held_out_share=0.25, seed=5),
            sources=[DataSource(path=data, times=2)],
            protected=protected,
            report=said.append,
        )
    assert said[0] == "3 of 12 answers share 13 words in a row with a suite's row: left out"
    assert said[1] == "0 of 0 windows share 13 words in a row with a suite's row: left out"
    notes = read_notes(tmp_path / "apart")
    assert notes.num_answers == len(notes.replication) == 9
    counts = {"suite_rows": 1, "overlapping_answers": 3, "overlapping_windows": 0}
    assert notes.kept_apart == counts
    told = load(tmp_path / "apart").provenance["data"]
    assert {name: told[name] for name in counts} == counts
    assert load_corpus(tmp_path / "whole").num_sequences == 12
    assert "suite_rows" not in load(tmp_path / "whole").provenance["data"]
    for name, sharing in (("apart", 0), ("whole", 3)):
        code, out, _ = invoke(capsys, "hamburger", "overlap", tmp_path / name, "--model", folder, "--json")
        assert code == 0
        found = json.loads(out)
        assert (found["texts"], found["texts_sharing"]) == (12 - 3 * (name == "apart"), sharing)
        assert found["rows_sharing"] == (sharing > 0)
    code, out, _ = invoke(capsys, "hamburger", "overlap", tmp_path / "whole", "--model", folder)
    assert out.splitlines()[0] == "3 of 12 training texts share 13 words in a row with a suite's row"
    assert out.splitlines()[-1].strip().startswith("answer 8, row 0, 1 shared: one two")


def test_the_command_trains_apart_from_the_suites_unless_told_otherwise(
    run_with_overlaps, tmp_path, monkeypatch, capsys
):
    folder, data = run_with_overlaps
    monkeypatch.setattr("hambench.cli.hamburger.protected_rows", lambda _: protected_by([THIRTEEN]))
    for options, num in (((), 9), (("--no-keep-apart",), 12)):
        out = tmp_path / f"out {num}"
        call = ("hamburger", "train", "--model", folder, "--data", data, "--out", out, "--lora-rank", 2)
        code, _, error = invoke(capsys, *call, "--steps", "micro=1,reader=1,student=1", *options)
        assert code == 0, error
        assert read_notes(out).num_answers == num


def test_a_run_whose_answers_all_overlap_and_a_folder_without_data_are_refused(
    run_with_overlaps, tmp_path, capsys
):
    folder, data = run_with_overlaps
    every = protected_by(["x " * 13])
    data.write_text("\n".join(json.dumps({"prompt": "x " * 20, "response": f"{i}"}) for i in range(4)))
    with pytest.raises(
        DataError, match=r"training needs at least 2 responses .* got 0 that share no 13 words"
    ):
        train(
            str(folder),
            RECIPE,
            RunOptions(out=tmp_path / "none", steps=STEPS),
            sources=[DataSource(path=data)],
            protected=lambda: every,
        )
    (tmp_path / "empty").mkdir()
    code, _, error = invoke(capsys, "hamburger", "overlap", tmp_path / "empty", "--model", folder)
    assert code == 2
    assert f"has neither {CORPUS_NAME} nor answers.jsonl" in error


def test_protected_rows_are_the_suites_rows(all_rows):
    assert protected_rows(None).names == [row.name for row in all_rows]
