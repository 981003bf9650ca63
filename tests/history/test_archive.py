"""History: files that are written once, merge by themselves, and never pass damage on silently."""

import dataclasses
import hashlib
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from synthetic import cells, header, simulate, write

from hambench.cli.history import command as history
from hambench.errors import HambenchError, IncompleteError, StoreError, UnknownNameError
from hambench.groups import prompt_hashes
from hambench.history.archive import (
    add,
    annotate,
    digest_of,
    entry_of,
    find,
    load_history,
    machine_id,
    pin,
    prune,
)
from hambench.store import load_run

CELLS = tuple(cell for cell in cells() if cell.label in ("vanilla", "speculative[k=4]"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    samples, records, scores = simulate(CELLS, per_task=2, error_rate=0.0)
    folder = tmp_path_factory.mktemp("run") / "run"
    return load_run(write(folder, header(CELLS, num_samples=len(samples)), samples, records, scores))


@pytest.fixture(scope="module")
def entry(run):
    return entry_of(run)


def again(entry, number, **changes):
    """Another run of the same kind, a day later each."""
    fields = {
        "run_id": f"run-{number:03d}",
        "created_at": f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}T00:00:00.000000+00:00",
        "commit": f"{number:040x}",
        **changes,
    }
    made = dataclasses.replace(entry, **fields)
    return dataclasses.replace(made, digest=digest_of(made))


def test_the_tracked_value_is_the_ratio_to_vanilla_of_the_same_run(run, entry):
    ratio = entry.series["tps_ratio"]["speculative[k=4]"]
    tps = entry.series["tps"]
    assert ratio.value == pytest.approx(tps["speculative[k=4]"].value / tps["vanilla"].value)
    assert "vanilla" not in entry.series["tps_ratio"]


def test_fewer_of_the_captured_prompts_form_another_series(run):
    """A run with a budget asks as many as the clock allows."""
    captured = prompt_hashes(run.samples.values())
    whole = dataclasses.replace(run, header=dataclasses.replace(run.header, data_hashes=captured))
    kept = dict(list(run.samples.items())[:-1])
    fewer = dataclasses.replace(
        whole,
        samples=kept,
        records=tuple(r for r in whole.records if r.sample_id in kept),
        scores=tuple(s for s in whole.scores if s.sample_id in kept),
    )
    assert fewer.header == whole.header
    assert entry_of(fewer).data != entry_of(whole).data
    # of all that were captured it is the hash that the header's would give
    digest = hashlib.sha256(json.dumps(captured, sort_keys=True).encode()).hexdigest()
    assert entry_of(whole).data == digest[:16]


def test_an_entry_reads_back_as_it_was_written(entry, tmp_path):
    path, new = add(tmp_path, entry)
    assert new
    assert load_history(tmp_path).entries == (entry,)
    assert path.parent.parent.name == entry.machine


def test_an_unfinished_run_is_not_history(run):
    with pytest.raises(IncompleteError, match="unfinished"):
        entry_of(dataclasses.replace(run, records=run.records[:-1]))


def test_a_run_without_answers_is_not_history(run):
    failed = tuple(dataclasses.replace(r, trace=None, error="planted") for r in run.records)
    with pytest.raises(IncompleteError, match="measured nothing"):
        entry_of(dataclasses.replace(run, records=failed, scores=()))


def test_adding_a_run_twice_changes_nothing(entry, tmp_path):
    path, _ = add(tmp_path, entry)
    before = path.read_bytes()
    assert add(tmp_path, entry) == (path, False)
    assert path.read_bytes() == before


def test_another_content_under_a_known_run_id_is_refused(entry, tmp_path):
    add(tmp_path, entry)
    for other in (again(entry, 1, run_id=entry.run_id), dataclasses.replace(entry, commit=None)):
        with pytest.raises(StoreError, match="other content"):
            add(tmp_path, dataclasses.replace(other, digest=digest_of(other)))
    assert load_history(tmp_path).entries == (entry,)


def test_many_writers_at_once_lose_nothing_and_never_leave_half_a_file(entry, tmp_path):
    entries = [again(entry, number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        # each run is added by two writers
        results = list(pool.map(lambda e: add(tmp_path, e), [*entries, *entries]))
    assert sum(new for _, new in results) == 12
    found = load_history(tmp_path)
    assert found.entries == tuple(entries)
    assert not found.problems
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def git(folder, *words):
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *words], check=True, capture_output=True, text=True
    )


def test_branches_that_both_added_runs_merge_without_a_conflict(entry, tmp_path):
    git(tmp_path, "init", "-q", "-b", "main")
    add(tmp_path / "history", again(entry, 0))
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    for branch, number in (("one", 1), ("two", 2)):
        git(tmp_path, "checkout", "-q", "-b", branch, "main")
        add(tmp_path / "history", again(entry, number))
        annotate(tmp_path / "history", f"from {branch}")
        pin(load_history(tmp_path / "history"), "release", f"run-{number:03d}")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-qm", branch)
    git(tmp_path, "merge", "-q", "-m", "both", "one")
    found = load_history(tmp_path / "history")
    assert [e.run_id for e in found.entries] == ["run-000", "run-001", "run-002"]
    assert found.pins["release"].run_id == "run-002"
    assert len(found.annotations) == 2
    assert not found.problems


@pytest.mark.parametrize("damage", ["torn", "edited", "moved", "newer", "copied", "binary"])
def test_damage_is_named_left_out_and_fails_verification(entry, tmp_path, damage):
    add(tmp_path, again(entry, 0))
    path, _ = add(tmp_path, again(entry, 1))
    text = path.read_text()
    if damage == "torn":
        path.write_text(text[: len(text) // 2])
    elif damage == "edited":
        fields = json.loads(text)
        fields["series"]["tps_ratio"]["speculative[k=4]"]["value"] *= 2
        path.write_text(json.dumps(fields))
    elif damage == "moved":
        other = tmp_path / "runs" / "another-machine-12345678" / path.parent.name
        other.mkdir(parents=True)
        path.rename(other / path.name)
    elif damage == "newer":
        path.write_text(json.dumps({**json.loads(text), "schema_version": 99}))
    elif damage == "copied":
        path.with_name(f"20260301-{path.name}").write_text(text)
    else:
        path.write_bytes(b"\xff\xfe\x00")
    found = load_history(tmp_path)
    assert len(found.problems) == 1
    assert "run-000" in {e.run_id for e in found.entries}
    result = CliRunner().invoke(history, ["verify", "--root", str(tmp_path)])
    assert result.exit_code == 3
    shown = CliRunner().invoke(history, ["show", "--root", str(tmp_path)])
    assert "left out" in shown.output


def test_a_half_written_file_of_another_writer_is_no_damage(entry, tmp_path):
    path, _ = add(tmp_path, entry)
    path.with_name(f".{path.name}.0123abcd").write_text("{")
    assert not load_history(tmp_path).problems


def test_the_newest_pin_of_a_name_counts_and_a_pin_needs_its_run(entry, tmp_path):
    for number in range(3):
        add(tmp_path, again(entry, number))
    pin(load_history(tmp_path), "release-1.2", "run-000")
    pin(load_history(tmp_path), "release-1.2", "run-002")
    assert load_history(tmp_path).pins["release-1.2"].run_id == "run-002"
    with pytest.raises(UnknownNameError, match="run-002"):
        pin(load_history(tmp_path), "release-1.3", "run-0022")
    with pytest.raises(HambenchError, match="letters"):
        pin(load_history(tmp_path), "../escape", "run-002")


def test_a_prefix_names_a_run_only_if_it_is_the_only_one(entry, tmp_path):
    for number in (1, 2, 20):
        add(tmp_path, again(entry, number))
    found = load_history(tmp_path)
    assert find(found, "run-001").run_id == "run-001"
    assert find(found, "run-02").run_id == "run-020"
    with pytest.raises(UnknownNameError):
        find(found, "run-0")


def test_pruning_keeps_the_newest_of_each_machine_and_what_is_pinned(entry, tmp_path):
    for number in range(6):
        add(tmp_path, again(entry, number))
    add(tmp_path, again(entry, 50, machine="other-00000000"))
    pin(load_history(tmp_path), "release", "run-001")
    words = ["prune", "--root", str(tmp_path), "--keep", "2"]
    assert "would be deleted" in CliRunner().invoke(history, words).output
    assert len(load_history(tmp_path).entries) == 7
    CliRunner().invoke(history, [*words, "--yes"])
    left = [e.run_id for e in load_history(tmp_path).entries]
    assert left == ["run-001", "run-004", "run-005", "run-050"]
    with pytest.raises(HambenchError):
        prune(load_history(tmp_path), keep=0)


def test_machines_that_differ_in_cpu_or_cores_have_different_names():
    facts = {"cpu": "Some CPU @ 2.1 GHz", "cpu_cores": 2, "machine": "x86_64"}
    names = {machine_id(facts), machine_id({**facts, "cpu_cores": 4}), machine_id({**facts, "cpu": "Other"})}
    assert len(names) == 3
    # software does not make another machine: it breaks the series instead
    assert machine_id({**facts, "torch": "2.13"}) == machine_id(facts)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") for name in names
    )


def test_a_missing_history_says_how_to_begin_one(tmp_path):
    with pytest.raises(StoreError, match="hambench history add"):
        load_history(tmp_path / "none")


def test_annotations_need_a_text_and_a_time_that_is_one(tmp_path):
    with pytest.raises(HambenchError):
        annotate(tmp_path, "  ")
    with pytest.raises(HambenchError, match="ISO 8601"):
        annotate(tmp_path, "new cooling", at="yesterday")
    assert annotate(tmp_path, "new cooling", at="2026-01-31T01:00:00+01:00").at.startswith("2026-01-31T00:00")


def test_the_commands_tell_the_whole_story(run, tmp_path):
    root = ["--root", str(tmp_path)]
    added = CliRunner().invoke(history, ["add", *root, str(run.path)])
    assert added.exit_code == 0, added.output
    assert "already" in CliRunner().invoke(history, ["add", *root, str(run.path)]).output
    CliRunner().invoke(history, ["pin", *root, "release", run.header.run_id])
    CliRunner().invoke(history, ["annotate", *root, "new cooling", "--break"])
    listed = CliRunner().invoke(history, ["list", *root]).output
    assert run.header.run_id in listed
    assert "[release]" in listed
    assert "break: new cooling" in listed
    shown = CliRunner().invoke(history, ["show", *root, "--cell", "speculative*"])
    assert "tps_ratio of speculative[k=4]" in shown.output
    assert "since release" in shown.output
    series = json.loads(CliRunner().invoke(history, ["show", *root, "--json"]).output.splitlines()[0])
    assert series["points"][0]["run_id"] == run.header.run_id
    assert CliRunner().invoke(history, ["verify", *root]).exit_code == 0
    assert CliRunner().invoke(history, ["show", *root, "--machine", "none"]).exit_code == 3


def test_show_gates_only_when_asked_and_on_a_confirmed_loss(entry, tmp_path):
    def with_ratio(number, ratio):
        tracked = dataclasses.replace(entry.series["tps_ratio"]["speculative[k=4]"], value=ratio)
        return again(entry, number, series={"tps_ratio": {"speculative[k=4]": tracked}})

    for number in range(10):
        add(tmp_path, with_ratio(number, 1.5 + 0.003 * (-1) ** number))
    words = ["show", "--root", str(tmp_path), "--gate-history"]
    add(tmp_path, with_ratio(10, 1.2))
    first = CliRunner().invoke(history, words)
    assert (first.exit_code, "watch, worse" in first.output) == (0, True)
    add(tmp_path, with_ratio(11, 1.2))
    second = CliRunner().invoke(history, words)
    assert (second.exit_code, "shift, worse" in second.output) == (1, True)
    assert CliRunner().invoke(history, words[:-1]).exit_code == 0
