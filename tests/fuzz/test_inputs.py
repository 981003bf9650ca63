"""Sweep files, suite files, data files and configs from elsewhere: one line, or the work; never a traceback."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import msgspec
import pytest
from damage import ODD, damaged, damaged_bytes
from fakes import TINY_SHAPE, save_tiny_model
from fuzz_effort import BOUNDED, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hambench.cli.run import command, request_from
from hambench.errors import BadRowsError, HambenchError
from hambench.runner.axis_text import MAX_VALUES, expand_values, parse_method, split_methods
from hambench.suites import CaptureRequest, capture
from hambench.yaml_files import read_yaml

SOME = settings(BOUNDED, max_examples=examples(300))
AXIS = st.text(alphabet="0123456789.:,=[]\"' -eainfk_/é", max_size=24)
SWEEP = """
methods: [vanilla, speculative]
k: [2, 4]
confidence: 0.5:0.9:0.1
context: [1024, 4096]
threads: 1:2:1
suite: longbench
limit: 10
method-arg: kv=shared
ignore-eos: false
seed: 010
budget: 10m
"""


def check_line(error: HambenchError) -> None:
    """Fails the test if the error would not be one line."""
    if "\n" in str(error):
        pytest.fail(f"not one line: {error}")


@SOME
@given(text=AXIS)
def test_any_axis_gives_values_or_one_line(text):
    try:
        assert len(expand_values(text)) <= MAX_VALUES * 12
    except HambenchError as error:
        check_line(error)


@SOME
@given(text=AXIS)
def test_any_methods_are_split_or_refused_in_one_line(text):
    try:
        for word in split_methods(f"vanilla,m[{text}],{text}"):
            parse_method(word)
    except HambenchError as error:
        check_line(error)


@SOME
@given(value=st.text(alphabet="abc,:=[] ./'", min_size=1, max_size=16))
def test_a_quoted_value_is_itself(value):
    assert expand_values(f'"{value}"') == (value,)
    assert parse_method(f'm[k=1,draft="{value}"]') == ("m", {"k": "1", "draft": value})


@pytest.mark.slow
@pytest.mark.timeout(600)
@SOME
@given(data=st.data())
def test_any_sweep_file_is_a_request_or_one_line(tmp_path, data):
    import click

    file = tmp_path / "sweep.yaml"
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged_bytes(SWEEP.encode())))
    else:
        file.write_text("# as it is\n" + SWEEP)
        content = data.draw(damaged(read_yaml(file)))
        file.write_text(json.dumps(content))
    try:
        options = command.make_context("run", ["--config", str(file)]).params
        for name in ("out", "resume", "report", "losslessness", "as_json"):
            options.pop(name, None)
        request_from(**options).sweep.expand()
    except HambenchError as error:
        check_line(error)
    except click.ClickException:
        pass  # its usage stands above the line


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(BOUNDED, max_examples=examples(150))
@given(data=st.data())
def test_any_data_file_is_read_or_named(tmp_path, data, rows):
    folder = tmp_path / "rows"
    folder.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in (rows / "multifieldqa_en.jsonl").read_text().splitlines()]
    file = folder / "multifieldqa_en.jsonl"
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged_bytes((rows / "multifieldqa_en.jsonl").read_bytes())))
    else:
        items = data.draw(damaged(lines))
        items = items if isinstance(items, list) else [items]
        file.write_text("\n".join(map(json.dumps, items)))
    try:
        captured = capture(CaptureRequest(suite="longbench", tasks=("multifieldqa_en",), data=folder))
    except HambenchError as error:
        check_line(error)
    else:
        # whatever was read can be stored
        msgspec.json.encode([captured.spec, captured.samples, captured.notes])


OWN_ROWS = [
    {"prompt": "Name a river.", "id": "a", "category": "places", "reference": "Elbe", "metric": "contains"},
    {"turns": ["Write a poem.", "Make it short."], "max_new_tokens": 8, "stop": ["\n\n"]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"custom_id": "1", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 4, "temperature": 0}},
    {"question_id": 1, "turns": ["a", "b"], "metric": "regex", "reference": [["[0-9]+", "b"], None]},
    {"prompt": '{"a": [1]}', "metric": "regex", "reference": "[0]", "stop": "["},
]
"""A row of each form that own prompts may have."""


def csv_of(items):
    """A CSV file with the same rows: a cell is text as it stands, or JSON; an absent value is an empty cell."""
    rows = [each for each in items if isinstance(each, dict)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in rows:
        values = [row.get(name) for name in columns]
        writer.writerow(
            "" if each is None else each if isinstance(each, str) else json.dumps(each) for each in values
        )
    # half a surrogate pair is no text of a file
    return file.getvalue().encode("utf-8", "replace").decode()


def test_rows_of_each_form_are_asked_from_a_csv_as_from_json(tmp_path):
    def asked(name, content):
        (tmp_path / name).write_text(content, "utf-8")
        return capture(CaptureRequest(suite=str(tmp_path / name))).samples

    for row in OWN_ROWS:
        (tmp_path / "mine.csv").unlink(missing_ok=True)
        assert asked("mine.csv", csv_of([row])) == asked("mine.jsonl", json.dumps(row)), row


@pytest.mark.slow
@pytest.mark.timeout(600)
@SOME
@given(data=st.data())
def test_any_file_of_own_prompts_is_read_or_each_bad_row_named(tmp_path, data):
    name = data.draw(st.sampled_from(["mine.jsonl", "mine.json", "mine.csv"]))
    rows = data.draw(st.lists(st.sampled_from(OWN_ROWS), min_size=1, max_size=3))
    if data.draw(st.booleans()):
        rows = data.draw(damaged(rows))
    items = rows if isinstance(rows, list) else [rows]
    content = json.dumps(items) if name == "mine.json" else "\n".join(map(json.dumps, items))
    if name == "mine.csv":
        content = csv_of(items)
    raw = content.encode()
    (tmp_path / name).write_bytes(data.draw(damaged_bytes(raw)) if data.draw(st.booleans()) else raw)
    try:
        captured = capture(CaptureRequest(suite=str(tmp_path / name)))
    except HambenchError as error:
        lines = error.lines if isinstance(error, BadRowsError) else [str(error)]
        assert all("\n" not in line for line in lines), lines
    else:
        msgspec.json.encode([captured.spec, captured.samples, captured.notes])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY_SHAPE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(BOUNDED, max_examples=examples(200))
@given(data=st.data())
def test_any_config_of_a_checkpoint_loads_or_is_one_line(tmp_path, data, checkpoint):
    import torch

    from hambench.models.target import load

    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    names = (
        "config.json",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    )
    file: Path = folder / data.draw(st.sampled_from(names))
    content = json.loads(file.read_text()) if file.is_file() else {"eos_token_id": 257}
    if file.name == "tokenizer.json":
        file.write_bytes(data.draw(damaged_bytes(file.read_bytes())))
    else:
        more = data.draw(
            st.dictionaries(st.sampled_from(["rope_scaling", "layer_types", "dtype"]), ODD, max_size=1)
        )
        file.write_text(json.dumps({**damaged_dict(data, content), **more}))
    try:
        model = load(str(folder), dtype="float32", device="cpu")
    except HambenchError as error:
        check_line(error)
        return
    ids = torch.arange(1, 5)
    assert model.llama.prefill(ids, model.llama.new_cache(8)).logits.shape == (1, 260)


def damaged_dict(data, content):
    damage = data.draw(damaged(content))
    return damage if isinstance(damage, dict) else {"model_type": damage}
