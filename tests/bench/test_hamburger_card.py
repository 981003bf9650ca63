"""The card of a training run, and the picture of the reliability curve."""

import dataclasses
import json
import re
import shutil

import pytest
from cli_calls import invoke
from fakes import save_tiny_model
from fakes_hamburger import save_tiny_hamburger, with_shape

from hambench.bench.hamburger.card import has_current_card, plot_reliability, run_facts, write_card
from hambench.decoding import SamplingParams
from hambench.engine.loop import generate
from hambench.methods.hamburger.checkpoint import digest
from hambench.methods.hamburger.judging.reliability import reliability
from hambench.methods.hamburger.training.recipes import SMALL
from hambench.methods.vanilla import VanillaConfig
from hambench.models.target import load


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of a training run by the command, and its base."""
    place = tmp_path_factory.mktemp("card")
    folder = save_tiny_model(place / "tiny", with_shape(tie_embeddings=True, max_positions=256))
    rows = [{"prompt_ids": [1, 2, i], "response_ids": [10, 20, 30, 40, 50 + i] * 3} for i in range(12)]
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder, place / "data.jsonl", place / "weights"


@pytest.fixture
def trained(weights, capsys):
    folder, data, out = weights
    if not out.is_dir():
        call = ("hamburger", "train", "--model", folder, "--data", data, "--out", out, "--lora-rank", 2)
        steps = ("--steps", "micro=2,reader=1,student=1", "--held-out", 0.4, "--seed", 3)
        code, _, error = invoke(capsys, *call, *steps, "--no-keep-apart")
        assert code == 0, error
    return folder, out


def row_of(text, name):
    (value,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    return value


def test_a_run_writes_a_card_of_its_own_records(trained):
    _, out = trained
    write_card(out)
    text = (out / "README.md").read_text()
    provenance = json.loads((out / "hamburger.json").read_text())["provenance"]
    assert row_of(text, "SHA-256 of hamburger.json") == f"`{digest(out)}`"
    size = sum(path.stat().st_size for path in out.glob("hamburger-*.safetensors"))
    assert row_of(text, "size") == f"{size / 2**20:.1f} MiB in 1 shard"
    assert row_of(text, "answers") == "12"
    assert row_of(text, "held out") == str(provenance["data"]["held_out"])
    assert row_of(text, "answer tokens") == "180"
    assert row_of(text, "recipe") == 'small with `{"lora_rank": 2}`'
    assert [row_of(text, f"steps of {stage}") for stage in ("micro", "reader", "student")] == ["2", "1", "1"]
    assert row_of(text, "seed") == "3"
    assert row_of(text, "hambench") == run_facts()["hambench"]
    assert row_of(text, "held out: loss") == f"{provenance['held_out']['loss']:.4f}"
    assert row_of(text, "calibration: asked") == str(provenance["calibration"]["asked"])
    assert "measure --answers FOLDER/held_out.jsonl --checkpoint FOLDER --card` writes them here" in text


def test_measure_writes_its_figures_into_the_card_and_draws_the_curve(trained, tmp_path, capsys):
    folder, out = trained
    target = load(str(folder))
    prompts = ([1, 2, 3], [9, 80], [70, 71, 72, 73])
    answers = tmp_path / "own.jsonl"
    rows = []
    for prompt in prompts:
        control = VanillaConfig().build(target)
        tokens = generate(control, prompt, SamplingParams(max_new_tokens=8)).token_ids
        rows.append(json.dumps({"prompt_ids": prompt, "response_ids": tokens}))
    answers.write_text("\n".join(rows))
    call = ("hamburger", "measure", "--model", folder, "--checkpoint", out, "--tokens", 8)
    code, _, error = invoke(
        capsys, *call, "--answers", out / "held_out.jsonl", "--plot", tmp_path / "none.png"
    )
    assert (code, "none.png is not written: the stop head had no decision" in error) == (0, True)
    plot = tmp_path / "curve.png"
    code, told, error = invoke(capsys, *call, "--answers", answers, "--card", "--plot", plot, "--json")
    assert code == 0, error
    judged = json.loads(told)
    text = (out / "README.md").read_text()
    assert text.count("## Held-out figures") == 1
    assert "on 3 answers of the base in `own.jsonl`, " in text
    assert "writes them here" not in text
    for each in judged["free_running"]:
        (line,) = re.findall(rf"^\| {each['confidence']:g} \|.*$", text, re.MULTILINE)
        assert f"{each['regret']['value']:.3f}" in line
        assert f"{each['m']['value']:.2f}" in line
    assert row_of(text, "token 2 of a macro-step right, teacher forced").startswith(
        f"{judged['token_accuracy']['2']['value']:.3f}"
    )
    (curve,) = [
        a["reliability"] for a in judged["along"] if a["confidence"] == judged["reliability_confidence"]
    ]
    assert f"(expected calibration error {curve['ece']:.3f})" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_had_ended_keeps_its_weights_and_the_figures_of_its_card_when_it_is_resumed(
    weights, trained, tmp_path, capsys
):
    """All was written anew, with other seconds in the provenance, and a card without the figures."""
    folder, data, _ = weights
    out = shutil.copytree(trained[1], tmp_path / "weights")
    call = ("hamburger", "measure", "--model", folder, "--checkpoint", out, "--tokens", 8, "--card")
    code, _, error = invoke(capsys, *call, "--answers", out / "held_out.jsonl")
    assert code == 0, error
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert b"free-running" in before["README.md"]
    call = (
        "hamburger",
        "train",
        "--model",
        folder,
        "--data",
        data,
        "--out",
        out,
        "--lora-rank",
        2,
        "--resume",
    )
    others = ("--held-out", 0.4, "--seed", 3, "--no-keep-apart")
    code, told, error = invoke(capsys, *call, "--steps", "micro=2,reader=1,student=1", *others)
    assert code == 0, error
    assert told.splitlines()[-1].startswith(f"{out}: this run had ended, so nothing was changed")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # a card that is not there is written all the same, and one of other weights is replaced
    (out / "README.md").unlink()
    code, _, error = invoke(capsys, *call, "--steps", "micro=2,reader=1,student=1", *others)
    assert (code, "writes them here" in (out / "README.md").read_text()) == (0, True), error
    (out / "README.md").write_bytes(before["README.md"])
    code, told, error = invoke(capsys, *call, "--steps", "micro=2,reader=1,student=2", *others)
    assert (code, "nothing was changed" in told) == (0, False), error
    assert "free-running" not in (out / "README.md").read_text()
    assert row_of((out / "README.md").read_text(), "steps of student") == "2"


def test_pictures_of_other_kinds_cards_without_a_folder_and_foreign_cards_are_refused(
    trained, tmp_path, capsys
):
    folder, out = trained
    answers = out / "held_out.jsonl"
    call = ("hamburger", "measure", "--model", folder, "--answers", answers, "--checkpoint", out)
    code, _, error = invoke(capsys, *call, "--plot", tmp_path / "curve.gif")
    assert (code, "plot must be a .png, .pdf or .svg file" in error) == (2, True)
    own = (out / "README.md").read_text()
    (out / "README.md").write_text("# Mine")
    code, _, error = invoke(capsys, *call, "--card")
    assert (code, "was not written by hambench" in error) == (2, True)
    call = ("hamburger", "train", "--model", folder, "--data", tmp_path / "none", "--out", out, "--resume")
    code, _, error = invoke(capsys, *call)
    assert (code, "was not written by hambench" in error) == (2, True), "known before training"
    assert (out / "README.md").read_text() == "# Mine"
    for changed in (own.replace("## Training", "## Training\n\nMy own words."), own + "\n"):
        (out / "README.md").write_text(changed)
        code, _, error = invoke(capsys, *call)
        assert (code, "README.md has changed since hambench wrote it" in error) == (2, True)
        assert (out / "README.md").read_text() == changed
    (out / "README.md").write_bytes("Größe".encode("latin-1"))
    code, _, error = invoke(capsys, *call)
    assert (code, "was not written by hambench" in error) == (2, True)
    (out / "README.md").write_text(own)


def test_a_card_of_an_earlier_version_is_replaced(tmp_path):
    save_tiny_hamburger(tmp_path)
    (tmp_path / "README.md").write_text("# Old\n<!-- written by hambench hamburger -->\n\nfigures\n")
    write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# HAMburger weights for tiny-random\n<!-- written by hambench hamburger, sha256 ")
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_a_card_in_another_encoding_is_read_all_the_same(tmp_path):
    """The end of a training run that had ended was a traceback."""
    save_tiny_hamburger(tmp_path)
    edited = "# Größe\n<!-- written by hambench hamburger -->\n\nfigures\n"
    (tmp_path / "README.md").write_bytes(edited.encode("latin-1"))
    assert not has_current_card(tmp_path)
    row = f"| SHA-256 of hamburger.json | `{digest(tmp_path)}` |\n"
    (tmp_path / "README.md").write_bytes((edited + row).encode("latin-1"))
    assert has_current_card(tmp_path)


def test_a_recipe_of_a_file_is_told_by_what_it_changes(tmp_path):
    recipe = dataclasses.replace(SMALL, name="second-hour", batch_size=4, thresholds=(0.12, 0.6))
    save_tiny_hamburger(tmp_path, provenance={"recipe": dataclasses.asdict(recipe)})
    write_card(tmp_path)
    told = row_of((tmp_path / "README.md").read_text(), "recipe")
    assert told == r'second-hour: small with `{"batch_size": 4, "thresholds": [0.12, 0.6]}`'


def test_weights_of_others_cannot_put_markup_into_their_card(tmp_path):
    bad = "<img src=x> [a](http://b) | `c` \x1b[31m\n# d"
    save_tiny_hamburger(
        tmp_path,
        provenance={
            "recipe": {"name": bad, "other": bad},
            "data": {bad: 1, "corpus": bad},
            "facts": {bad: bad},
            "steps": {bad: bad},
            "start_from": bad,
            "held_out": {bad: bad},
        },
    )
    write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    outside_code = re.sub(r"(?<!\\)`[^`\n]*`", "", text)
    assert "<img" not in outside_code
    assert "[a](" not in outside_code
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# HAMburger weights for tiny-random",
        "## Data",
        "## Training",
        "## Held-out figures",
    ]
    for line in text.splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) in (0, 3), line


@pytest.mark.parametrize(
    "provenance", [{"data": "1,273 responses", "stages": ["a"]}, {"recipe": "mine"}, ["?"], None]
)
def test_a_provenance_of_another_form_is_left_out_of_the_card(tmp_path, provenance):
    save_tiny_hamburger(tmp_path)
    config = json.loads((tmp_path / "hamburger.json").read_text())
    (tmp_path / "hamburger.json").write_text(json.dumps({**config, "provenance": provenance}))
    write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert row_of(text, "changes to the base") == "`unchanged`"
    assert "## Training" not in text
    assert "held_out.jsonl" not in text, "there is no such file"


def test_the_curve_is_drawn_over_its_bins(tmp_path):
    curve = reliability([(0.15, False), (0.12, True), (0.65, True), (0.66, True), (0.68, False)])
    plot_reliability(curve, tmp_path / "curve.svg", title="stop head at confidence 0.7")
    text = (tmp_path / "curve.svg").read_text()
    assert f"stop head at confidence 0.7: 5 decisions, ECE {curve.ece:.3f}" in text
    assert "share where continuing was right" in text
    plot_reliability(curve, tmp_path / "curve.pdf", title="x")
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
