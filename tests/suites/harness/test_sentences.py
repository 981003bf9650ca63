"""IFEval's checks that need NLTK's sentence data work without NLTK's server."""

import json
import zipfile

import pytest

from hambench.errors import HambenchError
from hambench.records import SampleRecord
from hambench.suites import CaptureRequest, capture, score
from hambench.suites.harness import sentences


@pytest.fixture
def nothing_found(private_cache, monkeypatch):
    """NLTK finds nothing but what hambench fetches into an empty cache."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    return private_cache


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(nothing_found, monkeypatch):
    def download(folder):
        wheel = folder / "llama_index_core-0.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("x", "y")
        return wheel

    monkeypatch.setattr(sentences, "_download", download)
    with pytest.raises(HambenchError, match="does not have the sha256 pinned"):
        sentences.fetch_punkt()
    assert not sentences.find_punkt()
    assert not list(sentences.punkt_folder().glob("tokenizers/punkt_tab/*"))


def test_what_another_process_fetched_meanwhile_is_not_fetched_again(nothing_found, monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(sentences, "find_punkt", lambda: next(answers))

    def download(folder):
        raise AssertionError("fetched again")

    monkeypatch.setattr(sentences, "_download", download)
    assert sentences.fetch_punkt() == "present"


def test_what_can_not_be_fetched_is_a_note_and_the_rest_runs(nothing_found, monkeypatch, tmp_path):
    def download(folder):
        raise HambenchError("the sentence data of IFEval's checks can't be fetched (no index)")

    monkeypatch.setattr(sentences, "_download", download)
    captured = capture(CaptureRequest(None, tasks=("ifeval",), data=_rows(tmp_path)))
    assert any("can't be fetched (no index)" in note.text for note in captured.notes)
    assert len(captured.samples) == 2


def test_a_cache_that_can_not_be_written_is_a_note_and_the_rest_runs(nothing_found, monkeypatch, tmp_path):
    monkeypatch.setenv("HAMBENCH_CACHE", "/dev/null/x")
    captured = capture(CaptureRequest(None, tasks=("ifeval",), data=_rows(tmp_path)))
    assert any("can't be stored in" in note.text and "HAMBENCH_CACHE" in note.text for note in captured.notes)
    assert len(captured.samples) == 2


def test_without_pip_the_fix_is_named(nothing_found, monkeypatch, tmp_path):
    (tmp_path / "pip.py").write_text('raise SystemExit("No module named pip")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(HambenchError, match="ensurepip"):
        sentences.fetch_punkt()


def test_sentences_and_words_in_capitals_are_counted(tmp_path):
    try:
        sentences.fetch_punkt()
    except HambenchError as error:
        pytest.skip(f"needs the package index once: {error}")
    captured = capture(CaptureRequest(None, tasks=("ifeval",), data=_rows(tmp_path)))
    few, capitals = captured.samples
    answers = [
        (few, "Dr. Smith came. He left.", 1.0),  # two sentences: the abbreviation ends none
        (few, "One. Two. Three. Four.", 0.0),
        (capitals, "THE RIVER is WIDE.", 1.0),
        (capitals, "The RIVER is wide.", 0.0),
    ]
    records = [
        SampleRecord(cell=str(number), sample_id=sample.sample_id, prompt_hash="", text=text)
        for number, (sample, text, _) in enumerate(answers)
    ]
    scores = score(captured.spec, {each.sample_id: each for each in captured.samples}, records)
    found = {each.cell: each.value for each in scores if each.primary}
    assert found == {str(number): expected for number, (_, _, expected) in enumerate(answers)}


def _rows(folder):
    rows = [
        {
            "key": 1,
            "prompt": "Write less than 3 sentences.",
            "instruction_id_list": ["length_constraints:number_sentences"],
            "kwargs": [{"relation": "less than", "num_sentences": 3}],
        },
        {
            "key": 2,
            "prompt": "Use at least 2 words in capitals.",
            "instruction_id_list": ["change_case:capital_word_frequency"],
            "kwargs": [{"capital_relation": "at least", "capital_frequency": 2}],
        },
    ]
    (folder / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
