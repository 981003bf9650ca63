import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cli_calls import invoke
from click.testing import CliRunner

from hambench.cli import cli
from hambench.runner.budget import PROBES_S
from hambench.runner.forecast.time_left import ENDING_S
from hambench.store import load_run
from hambench.terminal_text import terminal_safe


def test_every_command_has_help():
    runner = CliRunner()
    listed = runner.invoke(cli, ["--help"])
    assert listed.exit_code == 0
    names = cli.list_commands(None)
    assert {"run", "generate", "plan", "ls", "show", "report", "doctor", "models", "bench"} <= set(names)
    for name in names:
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0, (name, result.output)
        assert result.output.count("\n") > 3


def test_the_module_is_the_command():
    # as `accelerate launch -m hambench` starts it
    done = subprocess.run(
        [sys.executable, "-m", "hambench", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "hambench" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "unknown command 'rum'; did you mean run"),
        (["run"], "name a --suite"),
        (
            ["run", "--suite", "longbench", "--methods", "vanila"],
            "unknown method 'vanila'; did you mean vanilla",
        ),
        (["run", "--suite", "longbench", "--methods", "speculative", "-k", "0"], "must be >= 1, got 0"),
        (
            ["run", "--suite", "longbench", "--methods", "vanilla", "--limit", "0"],
            "limit must be >= 1, got 0",
        ),
        (
            ["run", "--suite", "longbench", "--methods", "vanilla", "--budget", "soon"],
            "a time must be a number",
        ),
        (
            ["run", "--suite", "longbench", "--methods", "vanilla", "--threads", "0"],
            "--threads must be whole",
        ),
        (
            ["run", "--suite", "longbench", "--methods", "vanilla", "--max-new-tokens", "8,many"],
            "--max-new-tokens must be whole numbers >= 1, got 'many'",
        ),
        (
            ["run", "--suite", "longbench", "--methods", "vanilla", "--context", "-3"],
            "--context must be whole numbers >= 1, got '-3'",
        ),
        (
            ["run", "--suite", "longbench", "--methods", "vanilla", "--model", "smolm2"],
            "did you mean smollm2-135m",
        ),
        (["run", "--resume", "no-such-run"], "unknown run or folder 'no-such-run'"),
        (["generate"], "give either a PROMPT or --prompt-ids"),
        (["generate", "x", "--prompt-ids", "1"], "give either a PROMPT or --prompt-ids"),
        (["generate", "--prompt-ids", "1,b"], "--prompt-ids must be comma-separated whole numbers"),
        (["generate", "x", "--max-steps", "0"], "max-steps must be >= 1"),
        (["generate", "x", "--method", "all"], "one configuration is wanted"),
        (["show", "no-such-run"], "unknown run or folder 'no-such-run'"),
    ],
)
def test_bad_input_gets_one_clear_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = invoke(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("suite", "tasks", "message"),
    [("longbnch", None, "did you mean longbench"), ("longbench", "lc", "did you mean lcc")],
)
def test_unknown_suites_and_tasks_are_named(capsys, tiny_model, suite, tasks, message):
    arguments = ["run", "--model", str(tiny_model), "--methods", "vanilla", "--suite", suite]
    code, _, err = invoke(capsys, *arguments, *(["--tasks", tasks] if tasks else []))
    assert code == 2
    assert message in err


def test_generate_prints_every_step_as_json(capsys, tiny_model):
    arguments = [
        "generate",
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--prompt-ids",
        "5,6,7",
        "--json",
    ]
    knobs = ["--method", "speculative", "-k", "2", "--max-steps", "4", "--ignore-eos"]
    code, out, _ = invoke(capsys, *arguments, *knobs)
    answer = json.loads(out)
    assert code == 0
    assert answer["method"] == "speculative[k=2]"
    assert (answer["finish"], len(answer["steps"])) == ("steps", 4)
    assert answer["token_ids"] == [token for step in answer["steps"] for token in step["tokens"]]
    assert all(step["kv_slots"] >= 3 and step["seconds"] > 0 for step in answer["steps"])


def test_generate_streams_text(capsys, tiny_model):
    code, out, err = invoke(
        capsys, "generate", "--model", str(tiny_model), "--raw", "hello", "--max-new-tokens", "5"
    )
    assert code == 0
    assert out
    assert "5 tokens in 5 steps" in err


def test_prompt_ids_outside_the_vocabulary_are_refused(capsys, tiny_model):
    code, _, err = invoke(capsys, "generate", "--model", str(tiny_model), "--prompt-ids", "5,260")
    assert code == 2
    assert "prompt ids must be in 0..259" in err


def test_a_prompt_beyond_the_context_is_one_clear_line(capsys, tiny_model):
    code, _, err = invoke(
        capsys, "generate", "--model", str(tiny_model), "--prompt-ids", "5,6", "--max-new-tokens", "9000"
    )
    assert code == 2
    assert "exceed the context" in err


def test_a_folder_without_tokenizer_takes_ids_and_refuses_text(capsys, tiny_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    ids = ["--prompt-ids", "5,6", "--max-new-tokens", "3", "--json"]
    code, out, _ = invoke(capsys, "generate", "--model", str(tmp_path), *ids)
    assert (code, len(json.loads(out)["token_ids"])) == (0, 3)
    code, _, err = invoke(capsys, "generate", "--model", str(tmp_path), "hello")
    assert code == 2
    assert "has no tokenizer: give --prompt-ids" in err


def test_ls_methods_and_metrics_are_machine_readable(capsys):
    _, out, _ = invoke(capsys, "ls", "methods", "--json")
    assert {"vanilla", "speculative", "prompt_lookup"} <= {
        json.loads(line)["method"] for line in out.splitlines()
    }
    _, out, _ = invoke(capsys, "ls", "metrics", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert all(row["definition"] for row in rows)
    assert "tps" in {row["metric"] for row in rows}


def test_ls_runs_survives_an_unreadable_one(capsys, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    code, out, _ = invoke(capsys, "ls", "runs", "--root", str(tmp_path), "--json")
    assert code == 0
    assert "unreadable" in json.loads(out)["state"]


def test_a_sweep_file_gives_the_options_and_the_command_line_goes_before_it(
    capsys, tiny_model, rows, tmp_path
):
    config = {
        "methods": ["vanilla", "speculative"],
        "k": [1, 2],
        "model": str(tiny_model),
        "dtype": "float32",
        "suite": "longbench",
        "tasks": "lcc",
        "data": str(rows),
        "limit": 2,
        "max-new-tokens": 4,
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(config))
    out = str(tmp_path / "run")
    code, text, err = invoke(
        capsys, "run", "--config", str(file), "--limit", "1", "--out", out, "--json", "--no-report"
    )
    assert code == 0, err
    objects = [json.loads(line) for line in text.splitlines()]
    assert [item["cell"] for item in objects] == ["vanilla", "speculative[k=1]", "speculative[k=2]"]
    assert {item["num_samples"] for item in objects} == {1}


@pytest.fixture
def axes_file(tiny_model, rows, tmp_path):
    """A sweep over methods, threads, contexts and limits, as a user writes it."""
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"""
        methods: [vanilla, prompt_lookup]
        model: {tiny_model}
        dtype: float32
        suite: longbench
        tasks: [lcc, multifieldqa_en]
        data: {rows}
        limit: 1
        threads: [1, 2]
        context: [100, 400]
        max-new-tokens: 3,6
        """
    )
    return file


def test_contexts_limits_and_threads_are_axes_from_the_file_to_the_table(capsys, axes_file, tmp_path):
    folder = tmp_path / "run"
    code, text, err = invoke(
        capsys, "run", "--config", str(axes_file), "--out", str(folder), "--json", "--no-report"
    )
    assert code == 0, err
    items = {item["cell"]: item for item in map(json.loads, text.splitlines())}
    assert len(items) == 2 * 2 * 2 * 2
    first = "vanilla[threads=1,context=100,max_new=3]"
    for label, item in items.items():
        conditions = label.partition("[")[2]
        alike = f"vanilla[{conditions}"
        assert item["baseline"] == (first if label == alike else alike)
        assert f"context={item['context']},max_new={item['max_new_tokens']}]" in conditions
        assert item["identity"]["num_samples"] == 2
    run = load_run(folder)
    lengths = {}
    for record in run.measured:
        assert record.error is None
        lengths.setdefault(record.cell, []).append(
            (record.trace.prompt_tokens, len(record.trace.token_ids), record.truncated_tokens)
        )
    for label, found in lengths.items():
        item = items[label]
        assert all(prompt + item["max_new_tokens"] <= item["context"] for prompt, _, _ in found)
        assert {new for _, new, _ in found} == {item["max_new_tokens"]}
        # the longer of the two prompts has a few hundred bytes, and its middle is cut for the short context only
        assert any(cut for _, _, cut in found) == (item["context"] == 100)
    notes = " ".join(map(str, run.header.notes))
    assert "Answers end at 3 or 6 tokens, by cell" in notes
    assert "held to 100 or 400 positions" in notes
    code, text, _ = invoke(capsys, "show", str(folder))
    assert code == 0
    lookup = "prompt_lookup[threads=2,context=400,max_new=6]"
    assert f"{lookup} against vanilla[threads=2,context=400,max_new=6]: speed" in text
    assert f"vanilla[threads=2,context=100,max_new=3] against {first}: speed" in text
    code, text, _ = invoke(capsys, "report", str(folder), "-o", str(tmp_path / "report.html"))
    assert code == 0
    assert lookup in (tmp_path / "report.html").read_text()


def test_the_same_method_twice_is_an_a_a_run_whose_cells_have_names_and_verdicts(capsys, axes_file, tmp_path):
    folder = tmp_path / "run"
    arguments = ["run", "--config", str(axes_file), "--methods", "vanilla,vanilla", "--no-report"]
    axes = ["--threads", "1", "--context", "400", "--max-new-tokens", "4"]
    code, text, err = invoke(capsys, *arguments, *axes, "--out", str(folder))
    assert code == 0, err
    first = "vanilla[threads=1,context=400]"
    assert [cell.label for cell in load_run(folder).header.cells] == [first, f"{first}#2"]
    verdict = next(line for line in text.splitlines() if line.startswith(f"{first}#2: speed"))
    # two samples can't make a speed better or worse, and equal tokens are equal
    assert "speed better" not in verdict
    assert "speed worse" not in verdict
    assert "accuracy equivalent (lossless by design, 2 of 2 answers equal token by token)" in verdict


def test_losslessness_says_where_answers_leave_vanillas_and_how_probable_they_are(
    capsys, axes_file, tmp_path
):
    one = ["--threads", "1", "--context", "400", "--max-new-tokens", "4", "--no-report", "--losslessness"]
    folder = tmp_path / "run"
    code, text, err = invoke(capsys, "run", "--config", str(axes_file), *one, "--out", str(folder))
    assert code == 0, err
    table = text.partition("log p/token")[2].splitlines()
    assert [line.split()[0].partition("[")[0] for line in table[1:3]] == ["vanilla", "prompt_lookup"]
    assert table[1].split()[4] == table[2].split()[4] == "2/2"
    assert table[1].split()[2:4] == ["0.000", "100.0%"]
    code, text, _ = invoke(capsys, "run", "--resume", str(folder), *one[-2:], "--json")
    assert code == 0
    for item in map(json.loads, text.splitlines()):
        judged = item["losslessness"]
        assert judged["num_judged"] == judged["num_identical"] == 2
        assert judged["target_logprob_per_token"] < 0


def test_a_sweep_over_axes_is_finished_where_it_stopped(capsys, axes_file, tmp_path):
    folder = tmp_path / "run"
    arguments = ["run", "--config", str(axes_file), "--threads", "1", "--no-report"]
    assert invoke(capsys, *arguments, "--out", str(folder))[0] == 0
    whole = {(r.cell, r.sample_id): r.trace.token_ids for r in load_run(folder).measured}
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(lines[:5]))
    assert invoke(capsys, "run", "--resume", str(folder), "--no-report")[0] == 0
    assert {(r.cell, r.sample_id): r.trace.token_ids for r in load_run(folder).measured} == whole


def test_a_budget_takes_samples_and_one_spent_on_loading_starts_no_run(
    capsys, monkeypatch, tiny_model, rows, tmp_path
):
    words = (
        "run --dtype float32 --methods vanilla --suite longbench --tasks lcc --max-new-tokens 4 --no-report"
    )
    arguments = [*words.split(), "--budget", "10m", "--model", str(tiny_model), "--data", str(rows)]
    assert invoke(capsys, *arguments, "--out", str(tmp_path / "run"))[0] == 0
    assert len(load_run(tmp_path / "run").samples) == 3
    clock = itertools.chain([0.0], itertools.repeat(600.0))
    monkeypatch.setattr("hambench.runner.start.time", SimpleNamespace(monotonic=lambda: next(clock)))
    code, _, err = invoke(capsys, *arguments, "--out", str(tmp_path / "none"))
    assert code != 0
    to_come = PROBES_S + ENDING_S
    assert f"a budget of 600 s fits no sample: {600 + to_come:.0f} s go into loading" in err
    assert not (tmp_path / "none").exists()


def test_a_plan_counts_what_each_cell_of_an_axis_would_take(capsys, axes_file):
    code, text, err = invoke(capsys, "plan", "--config", str(axes_file), "--methods", "vanilla", "--json")
    assert code == 0, err
    plan = json.loads(text)
    assert len(plan["cells"]) == 8
    assert set(plan["decode_tps"]) == set(plan["cells"])
    # both samples at the larger limit
    assert sum(task["max_new_tokens"] for task in plan["tasks"]) == 2 * 6
    bytes_per_slot = plan["kv_bytes"] / 400
    assert plan["kv_bytes"] > 0
    assert bytes_per_slot <= plan["kv_bytes"] / 100


def test_a_context_beyond_the_models_is_refused(capsys, axes_file):
    code, _, err = invoke(capsys, "run", "--config", str(axes_file), "--context", "100,8193")
    assert code == 2
    assert "context must be <= 8192, the positions that" in err


def test_one_limit_belongs_to_the_run_and_is_in_no_label(capsys, axes_file, tmp_path):
    out = str(tmp_path / "run")
    limits = ["--max-new-tokens", "4", "--methods", "vanilla", "--threads", "1", "--context", "400"]
    code, text, err = invoke(
        capsys, "run", "--config", str(axes_file), *limits, "--out", out, "--json", "--no-report"
    )
    assert code == 0, err
    assert json.loads(text)["cell"] == "vanilla[threads=1,context=400]"
    assert load_run(tmp_path / "run").header.max_new_tokens == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("methdos: all", "did you mean methods"),
        ("- a", "must map options to values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_broken_sweep_file_is_one_clear_line(capsys, tmp_path, content, message):
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    code, _, err = invoke(capsys, "run", "--config", str(file), "--suite", "longbench")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_regime_the_engine_cannot_run_in_is_refused(capsys, tiny_model, rows, tmp_path):
    arguments = [
        "run",
        "--model",
        str(tiny_model),
        "--methods",
        "vanilla",
        "--suite",
        "longbench",
        "--tasks",
        "lcc",
    ]
    arguments += ["--data", str(rows), "--limit", "1", "--regime", "graph", "--out", str(tmp_path / "run")]
    code, _, err = invoke(capsys, *arguments)
    assert code == 2
    assert "regime 'graph' with fused kernels needs a CUDA device" in err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def escaping_model(tiny_model, tmp_path):
    """A model that answers escape characters and nothing else, in a chat template that thinks unless told not to."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "escaping"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.norm.weight", "lm_head.weight"):
        weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors")
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    escape = vocabulary["\u011b"]
    first = next(text for text, number in vocabulary.items() if number == 0)
    vocabulary["\u011b"], vocabulary[first] = 0, escape
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    return folder


def generate_with(capsys, model, *arguments):
    return invoke(
        capsys, "generate", "--model", str(model), "--dtype", "float32", "--max-new-tokens", "3", *arguments
    )


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(capsys, escaping_model):
    _, shown, _ = generate_with(capsys, escaping_model, "hi")
    assert shown == r"\x1b\x1b\x1b" + "\n"
    _, whole, _ = generate_with(capsys, escaping_model, "hi", "--json")
    assert json.loads(whole)["text"] == "\x1b" * 3


def test_template_arguments_reach_the_prompt_or_are_refused(capsys, escaping_model):
    def prompt(*arguments):
        code, out, err = generate_with(capsys, escaping_model, "hi", "--json", *arguments)
        return len(json.loads(out)["prompt_ids"]) if code == 0 else (code, err)

    assert prompt() == len("hi<think>")
    assert prompt("--chat-template-arg", "enable_thinking=false") == len("hi")
    code, err = prompt("--chat-template-arg", "enable_thought=false")
    assert code == 2
    assert "'enable_thought' has no effect" in err
    code, err = prompt("--chat-template-arg", "enable_thinking=false", "--raw")
    assert (code, "no effect with --raw" in err) == (2, True)


def test_template_arguments_reach_the_prompts_of_a_run(capsys, escaping_model, rows, tmp_path):
    words = (
        "--dtype float32 --suite longbench --tasks multifieldqa_en --limit 1 --methods vanilla --no-report"
    )
    common = [*words.split(), "--max-new-tokens", "2", "--model", str(escaping_model), "--data", str(rows)]

    def prompt(name, *arguments):
        code, _, err = invoke(capsys, "run", *common, "--out", str(tmp_path / name), *arguments)
        assert code == 0, err
        (sample,) = load_run(tmp_path / name).samples.values()
        return sample.prompt

    thinking = prompt("thinking")
    assert thinking.endswith("<think>")
    plain = prompt("plain", "--chat-template-arg", "enable_thinking=false")
    assert plain == thinking.removesuffix("<think>")


def test_the_end_of_an_answer_is_not_shown(capsys, escaping_model):
    (escaping_model / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 0]}))
    _, shown, _ = generate_with(capsys, escaping_model, "hi")
    assert shown == "\n"
    _, whole, _ = generate_with(capsys, escaping_model, "hi", "--json")
    assert (json.loads(whole)["text"], json.loads(whole)["finish"]) == ("", "eos")


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_streamed_text_is_the_whole_text_wherever_the_limit_cuts_it(capsys, tiny_model, limit):
    arguments = ("--raw", "hello", "--ignore-eos", "--max-new-tokens", str(limit))
    _, shown, _ = generate_with(capsys, tiny_model, *arguments)
    _, whole, _ = generate_with(capsys, tiny_model, *arguments, "--json")
    assert shown == terminal_safe(json.loads(whole)["text"]) + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--temperature", "1", "--seed", str(2**64)), "seed must be a whole number"),
        (("--temperature", "inf"), "temperature must be >= 0 and finite"),
        (("a\udcffb", "--raw"), "the prompt is not Unicode text"),
    ],
)
def test_values_that_nothing_can_use_are_one_line(capsys, tiny_model, arguments, said):
    prompt = () if arguments[-1] == "--raw" else ("hi",)
    code, _, err = generate_with(capsys, tiny_model, *prompt, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_port_that_is_taken_is_one_line_before_the_model_is_loaded(capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = invoke(capsys, "serve", "--model", "./no such folder", "--port", str(port))
    assert code == 2
    assert f"can't listen on 127.0.0.1 port {port}" in err


def test_a_server_says_its_port_once_it_answers(tiny_model):
    import signal
    import urllib.request

    command = [sys.executable, "-m", "hambench", "serve", "--model", str(tiny_model), "--dtype", "float32"]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        line = next(line for line in server.stderr if "serving" in line)
        url = line.split()[-1]
        assert not url.endswith(":0/v1")
        assert json.loads(urllib.request.urlopen(f"{url}/models", timeout=20).read())["object"] == "list"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


def test_one_broken_prompt_is_one_error_and_a_run_without_any_answer_is_no_success(
    capsys, tiny_model, rows, tmp_path
):
    import shutil

    from transformers import AutoTokenizer

    model, data = tmp_path / "extra", tmp_path / "rows"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    data.mkdir()
    content = (rows / "multifieldqa_en.jsonl").read_text()

    def run(name, text, *arguments):
        (data / "multifieldqa_en.jsonl").write_text(text)
        asked = ["--model", str(model), "--dtype", "float32", "--suite", "longbench", "--data", str(data)]
        asked += ["--tasks", "multifieldqa_en", "--methods", "vanilla", "--max-new-tokens", "4"]
        code, _, err = invoke(capsys, "run", *asked, *arguments, "--out", str(tmp_path / name), "--no-report")
        return code, err, load_run(tmp_path / name).measured

    code, _, records = run("one", content.replace("red1.", "<extra>."), "--think-end", "</think>")
    assert code == 0
    assert [record.error is None for record in records] == [True, False, True]
    assert "prompt ids must be in 0..259" in records[1].error
    assert load_run(tmp_path / "one").header.think_end == "</think>"
    code, err, records = run("all", content.replace("The colour", "<extra>"))
    assert (code, len(records)) == (3, 3)
    assert "all 3 answers failed; the first: HambenchError: prompt ids must be" in err
