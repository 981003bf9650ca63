"""Notes have kinds; a report acts on the kind and never on the words."""

import json
import shutil
from pathlib import Path

import pytest

from hambench.run_notes import KINDS, NOT_MEASURED, TITLES, Note, note_of_text
from hambench.store import load_run

RUN = Path(__file__).parent / "data" / "run-v1"


def test_every_kind_has_a_title():
    assert set(TITLES) == set(KINDS)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("simulated: every sample stands for many", "simulated"),
        ("offline edition: rows built by hambench stand in for 'longbench'", "offline"),
        ("Model: Q4_1 de-quantised to bfloat16.", "dequantised"),
        ("Partial run: some rows of each task only; the intervals show what they allow to say.", "partial"),
        ("Measured on a CPU (2 logical cores): the speeds say nothing about a GPU.", "cpu"),
        ("Answers end at 6 tokens instead of the tasks' own limits.", "other"),
    ],
)
def test_the_notes_of_earlier_versions_get_kinds(text, kind):
    assert note_of_text(text) == Note(kind, text)


def test_a_run_stored_with_plain_text_still_reads():
    kinds = [note.kind for note in load_run(RUN).header.notes]
    assert kinds == ["cpu", "partial", "other"]


def test_a_new_note_is_never_judged_by_its_words(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(RUN, folder)
    header = json.loads((folder / "run.json").read_text())
    header["notes"] = [{"kind": "left_out", "text": "forced_decoding left out: no simulated weights"}]
    (folder / "run.json").write_text(json.dumps(header))
    (note,) = load_run(folder).header.notes
    assert note.kind not in NOT_MEASURED
