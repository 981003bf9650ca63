"""Odd values on the command line and in files: one line that names the value, exit code 2, nothing written."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import invoke

from hambench.store import RunWriter, load_run


def refused(capsys, *arguments):
    code, _, err = invoke(capsys, *arguments)
    assert code == 2, err
    # click's own refusals carry their usage above the line
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.fixture
def run_options(tiny_model, rows):
    return (
        *("--model", tiny_model, "--dtype", "float32", "--suite", "longbench", "--data", rows, "--tasks"),
        *("multifieldqa_en", "--methods", "vanilla", "--max-new-tokens", "2", "--no-report"),
    )


@pytest.fixture
def finished(capsys, run_options, tmp_path):
    folder = tmp_path / "run"
    code, _, err = invoke(capsys, "run", *run_options, "--out", folder)
    assert code == 0, err
    return folder


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
def test_a_forecast_needs_a_finite_gap(capsys, number):
    assert "gap-us" in refused(capsys, "predict", "--gap-us", number, "--bandwidth", "1GB/s", "--json")


def test_a_forecast_needs_a_bandwidth_that_can_be(capsys):
    assert "a bandwidth must be a number" in refused(capsys, "predict", "--bandwidth", "9" * 400 + "GB/s")


def test_a_profile_needs_a_prompt(capsys, tiny_model):
    line = refused(capsys, "profile", "--model", tiny_model, "--dtype", "float32", "--prompt", "")
    assert "--prompt is empty" in line


@pytest.mark.parametrize("device", ["cuda:63", "nonsense9", "cuda:x"])
@pytest.mark.parametrize("command", [("generate", "--raw", "a"), ("profile",)])
def test_a_device_that_is_not_here(capsys, tiny_model, device, command):
    line = refused(capsys, *command, "--model", tiny_model, "--dtype", "float32", "--device", device)
    assert device in line


@pytest.mark.parametrize("template", ["{% for %}", "{{ 1/0 }}"])
def test_a_template_that_fails_is_one_line(capsys, tmp_path, template):
    from fakes import save_tiny_model

    folder = save_tiny_model(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(template)
    line = refused(capsys, "generate", "--model", folder, "--dtype", "float32", "hello")
    assert "chat template" in line


@pytest.mark.parametrize("prompt", ["hi", "<bos>hi"])
def test_a_raw_prompt_begins_once_and_never_ends(capsys, tmp_path, prompt):
    from fakes import save_tiny_model, wrap_prompts

    folder = wrap_prompts(save_tiny_model(tmp_path / "tiny"))
    options = ("--model", folder, "--dtype", "float32", "--raw", prompt, "--max-new-tokens", 1, "--json")
    code, out, err = invoke(capsys, "generate", *options)
    assert code == 0, err
    assert json.loads(out)["prompt_ids"] == [256, 71, 72]


def test_a_url_is_itself_in_brackets_and_as_an_argument(capsys, run_options):
    # nothing listens there: both say so, and neither takes the URL for a range
    plain = [*run_options]
    plain[plain.index("vanilla")] = "endpoint"
    first = refused(
        capsys, "plan", *plain[:-1], "--limit", 1, "--method-arg", "endpoint.url=http://127.0.0.1:9/v1"
    )
    plain[plain.index("endpoint")] = "endpoint[url=http://127.0.0.1:9/v1]"
    assert refused(capsys, "plan", *plain[:-1], "--limit", 1) == first
    assert "does not answer" in first or "hambench[endpoint]" in first


@pytest.mark.parametrize("word", ["speculative[k=2,draft={}]", 'speculative[k=2,draft="{}"]'])
def test_a_draft_may_have_a_comma_in_its_name(capsys, tmp_path, tiny_model, word):
    from fakes import save_tiny_model

    folder = save_tiny_model(tmp_path / "a,b")
    options = ("--model", tiny_model, "--dtype", "float32", "--raw", "hi", "--max-new-tokens", 2, "--json")
    code, out, err = invoke(capsys, "generate", *options, "--method", word.format(folder))
    assert code == 0, err
    assert json.loads(out)["method"] == f"speculative[k=2,draft={folder}]"
    quoted = ("--method", "speculative", "-k", 2, "--method-arg", f'draft="{folder}"')
    code, again, err = invoke(capsys, "generate", *options, *quoted)
    assert code == 0, err
    assert json.loads(again)["token_ids"] == json.loads(out)["token_ids"]


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("methods: speculative\nk: 1:4:1", ("--methods", "speculative", "-k", "1:4:1")),
        ("methods: vanilla\nthreads: 1:2:1", ("--methods", "vanilla", "--threads", "1:2:1")),
        ("methods: vanilla\nthreads: [1, 2]", ("--methods", "vanilla", "--threads", "1,2")),
        ("methods: vanilla\nseed: 010", ("--methods", "vanilla", "--seed", "010")),
        (
            "methods: speculative\nmethod-arg: k=3\nreport: no",
            ("--methods", "speculative", "--method-arg", "k=3", "--no-report"),
        ),
        ("methods:\nmodel: null\ndtype: ~\nmethod-arg:", ()),
        ("methods: vanilla\nignore-eos: true\nlimit:", ("--methods", "vanilla", "--ignore-eos")),
    ],
)
def test_a_sweep_file_means_what_the_command_line_means(tmp_path, written, options):
    from hambench.cli.run import command

    file = tmp_path / "sweep.yaml"
    file.write_text(written)
    by_file = command.make_context("run", ["--config", str(file)]).params
    assert by_file == command.make_context("run", list(options)).params


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("budget: 1:30", "a time must be a number with s, m or h"),
        ("methods: off", "unknown method 'off'"),
        ("methods: [vanilla, no]", "unknown method 'no'"),
        ("limit: 1\nlimit: 2", "'limit' is there twice"),
        ("max_new_tokens: 1\nmax-new-tokens: 2", "twice"),
        ("limit: {a: 1}", "one value or a list of plain values"),
        ("methods: [[a]]", "one value or a list of plain values"),
        ("threads: 1_0", "--threads must be whole numbers >= 1, got '1_0'"),
        ("threads: " + "9" * 5000, "--threads must be whole numbers"),
    ],
)
def test_a_slip_in_a_sweep_file_is_one_line(capsys, tmp_path, written, line):
    file = tmp_path / "sweep.yaml"
    file.write_text(f"suite: longbench\n{written}\n")
    assert line in refused(capsys, "run", "--config", file, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_home_whoever_wrote_it(capsys, run_options, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HAMBENCH_RUNS", "~/runs")
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke(capsys, "run", *run_options, "--limit", 1)
    assert code == 0, err
    assert len(list((tmp_path / "home" / "runs").iterdir())) == 1
    code, _, err = invoke(capsys, "run", *run_options, "--limit", 1, "--out", "~/other")
    assert code == 0, err
    assert load_run(tmp_path / "home" / "other").complete
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_path_that_is_not_utf8_is_written_to_and_said(capsys, run_options, tmp_path):
    folder = tmp_path / "o\udcff"
    code, _, err = invoke(capsys, "run", *run_options, "--limit", 1, "--out", folder)
    assert code == 0, err
    header = load_run(folder).header
    assert header.run_id.startswith("o\\xff-")


@pytest.mark.parametrize(
    "arguments",
    [
        ("history", "add", "{run}", "--root", "file"),
        ("compare", "{run}", "{run}", "--json", "file/x.json"),
        ("report", "{run}", "-o", "file/x.html"),
        ("report", "{run}", "--markdown", "file/x.md"),
        ("report", "{run}", "--export", "file/x"),
        ("report", "{run}", "-o", "x" * 300),
    ],
)
def test_an_output_below_a_file_is_one_line(capsys, finished, monkeypatch, arguments):
    monkeypatch.chdir(finished.parent)
    Path("file").write_text("x")
    refused(capsys, *(str(argument).format(run=finished) for argument in arguments))
    assert Path("file").read_text() == "x"


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", '{"rows": 1}', "null", "[" * 5000])
def test_a_profile_that_is_none_is_refused(capsys, finished, tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    line = refused(capsys, "report", finished, "--profile", tmp_path / "p.json", "-o", tmp_path / "r.html")
    assert "is not what `hambench profile --json` writes" in line


def test_all_leaves_out_what_the_loaded_model_can_not_do(capsys, run_options, tmp_path, tiny_model):
    import shutil

    from transformers import AutoModelForCausalLM, GPT2Config

    sizes = {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096}
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, eos_token_id=257)).save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path / "gpt2" / name)
    options = list(run_options)
    options[options.index(tiny_model)] = tmp_path / "gpt2"
    options[options.index("vanilla")] = "all"
    code, _, err = invoke(capsys, "run", *options, "--limit", 1, "--out", tmp_path / "run")
    assert code == 0, err
    header = load_run(tmp_path / "run").header
    assert {cell.method for cell in header.cells} == {"vanilla", "prompt_lookup", "suffix"}
    assert any("speculative" in note.text and "adapter" in note.text for note in header.notes)
    options[options.index("all")] = "speculative"
    assert "runs through the transformers adapter" in refused(
        capsys, "run", *options, "--limit", 1, "--out", tmp_path / "other"
    )
    assert not (tmp_path / "other").exists()


def test_two_runs_begun_at_once_make_two_folders(run_options, tmp_path):
    command = [sys.executable, "-m", "hambench", "run", *map(str, run_options), "--limit", "1"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(load_run(folder).complete for folder in folders)


def test_a_folder_that_another_run_took_meanwhile_is_passed_over(capsys, run_options, tmp_path, monkeypatch):
    from hambench.runner import start

    monkeypatch.chdir(tmp_path)
    begin, tried = start.start_run, []
    with contextlib.ExitStack() as others:

        def start_run(request, folder, **options):
            if not tried:
                others.enter_context(RunWriter.claim(folder))
            tried.append(folder)
            return begin(request, folder, **options)

        monkeypatch.setattr(start, "start_run", start_run)
        code, _, err = invoke(capsys, "run", *run_options, "--limit", "1")
    assert code == 0, err
    assert len(tried) == 2
    assert load_run(tried[1]).complete
    assert not tried[0].exists()


def test_bad_rows_of_own_prompts_are_a_line_each_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n{"promt": "a"}\n')
    code, _, err = invoke(capsys, "run", "--suite", "mine.jsonl", "--methods", "vanilla", "--out", "run")
    lines = err.splitlines()
    assert code == 2
    assert [line.split(": ")[1] for line in lines] == [
        "mine.jsonl",
        "mine.jsonl, line 2",
        "mine.jsonl, line 3",
    ]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--suite", "longbench", "--suite", "own.jsonl"), "--suite is given 2 times"),
        (("plan", "--suite", "nosuch", "--suite=efficiency"), "--tasks alone or in a YAML file"),
        (("run", "--methods", "vanilla", "--methods", "suffix"), "join its values by commas, --methods A,B"),
        (
            ("run", "-k", "1", "--draft-tokens", "2", "--suite", "nosuch"),
            "--draft-tokens is given 2 times",
        ),
        (
            ("bench", "engine", "--contexts", "64", "--contexts", "128", "--repeats", "0"),
            "--contexts is given 2 times",
        ),
        (("data", "verify", "--tasks", "lcc", "--tasks", "trec"), "--tasks is given 2 times"),
        (("gate", "--only", "exact", "--only", "speed"), "join its values by commas, --only A,B"),
        (("generate", "--prompt-ids", "5", "--prompt-ids", "6"), "--prompt-ids is given 2 times"),
        (
            ("hamburger", "train", "--steps", "micro=1", "--steps", "reader=1", "--epochs", "nan"),
            "--steps is given 2 times",
        ),
        (("history", "show", "--suite", "a", "--suite", "b"), "would be lost: give it once"),
        (("data", "list", "--suite", "a", "--suite", "b"), "would be lost: give it once"),
        (
            ("bench", "overhead", "--suite", "a", "--suite", "b", "--records", "0"),
            "would be lost: give it once",
        ),
        (("run", "--limit", "1", "--limit", "2", "--suite", "nosuch"), "unknown suite 'nosuch'"),
        (("generate", "--method", "nosuch", "-k", "4", "-k", "8", "a"), "unknown method 'nosuch'"),
        (
            ("serve", "--confidence", "1", "--confidence", "0.5", "--method", "nosuch"),
            "unknown method 'nosuch'",
        ),
    ],
)
def test_a_list_or_a_suite_that_is_given_twice_does_not_lose_its_first_values(capsys, arguments, said):
    """The last one won: a budget went to one suite alone, and a run lost its baseline."""
    assert said in refused(capsys, *arguments)
