from pathlib import Path

import pytest

from hambench.errors import HambenchError, UnknownNameError
from hambench.methods.hamburger import HamburgerConfig
from hambench.methods.kv_press import KVPressConfig
from hambench.methods.speculative import SpeculativeConfig
from hambench.runner.axis_text import expand_values, split_methods
from hambench.runner.knobs import parse_axes, what_all_leaves_out
from hambench.runner.sweep import Sweep, config_of


def labels(model="m", **kwargs):
    return [cell.label for cell in Sweep(model=model, **kwargs).expand().cells]


def test_an_axis_is_expanded_by_its_defaults():
    assert labels(methods=("vanilla", "speculative")) == ["vanilla", "speculative[k=2]", "speculative[k=4]"]


def test_an_axis_flag_replaces_the_defaults_and_reaches_every_method_that_has_the_knob():
    assert labels(methods=("speculative", "prompt_lookup"), knobs={"k": [3, 7]}) == [
        "speculative[k=3]",
        "speculative[k=7]",
        "prompt_lookup[k=3]",
        "prompt_lookup[k=7]",
    ]


def test_a_knob_can_be_given_to_one_method_only():
    found = labels(
        methods=("speculative", "prompt_lookup"), knobs={"speculative.k": [1], "prompt_lookup.n": [2]}
    )
    assert found == ["speculative[k=1]", "prompt_lookup[n=2]"]


def test_brackets_fix_knobs_of_one_cell():
    words = split_methods("vanilla,speculative[k=8,kv=shared]")
    assert words == ("vanilla", "speculative[k=8,kv=shared]")
    assert labels(methods=words) == ["vanilla", "speculative[k=8,kv=shared]"]


def test_the_same_method_twice_is_an_a_a_run_with_distinct_labels():
    assert labels(methods=("vanilla", "vanilla")) == ["vanilla", "vanilla#2"]


def test_threads_are_an_axis():
    assert labels(methods=("vanilla",), threads=(1, 2)) == ["vanilla[threads=1]", "vanilla[threads=2]"]


def test_contexts_and_limits_are_axes_and_every_label_says_which():
    assert labels(methods=("vanilla", "speculative[k=2]"), contexts=(64, 128), max_new_tokens=(8,)) == [
        "vanilla[context=64,max_new=8]",
        "vanilla[context=128,max_new=8]",
        "speculative[k=2,context=64,max_new=8]",
        "speculative[k=2,context=128,max_new=8]",
    ]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"contexts": (1,)}, "context must be >= 2, got 1"),
        ({"max_new_tokens": (0,)}, "max_new_tokens must be >= 1, got 0"),
        ({"threads": (2, 0)}, "threads must be >= 1, got 0"),
    ],
)
def test_an_axis_value_that_can_hold_no_answer_is_refused(axis, message):
    with pytest.raises(HambenchError, match=message):
        Sweep(model="m", **axis)


def test_a_cell_gives_its_config_back():
    cell = Sweep(model="m", methods=("speculative[k=3]",)).expand().cells[0]
    assert config_of(cell).num_draft_tokens == 3


def test_ranges_include_both_ends_without_rounding_dust():
    assert expand_values("0.5:0.9:0.1") == ("0.5", "0.6", "0.7", "0.8", "0.9")
    assert expand_values("1,4") == ("1", "4")


@pytest.mark.parametrize("text", ["0.5:0.9:0", "0.9:0.5:0.1", "1:b:c", "1,,2", ""])
def test_a_broken_axis_is_refused(text):
    with pytest.raises(HambenchError, match="axis"):
        expand_values(text)


@pytest.mark.parametrize(
    ("methods", "knobs", "message"),
    [
        (("vanila",), {}, "did you mean vanilla"),
        (("speculative",), {"k": [0]}, r"num_draft_tokens \(k\) must be >= 1, got 0"),
        (("speculative",), {"k": ["4"]}, "speculative: num_draft_tokens must be int, got '4'"),
        (("speculative",), {"k": [True]}, "speculative: num_draft_tokens must be int, got True"),
        (("speculative",), {"k": [2.0]}, r"speculative: num_draft_tokens must be int, got 2\.0"),
        (("hamburger",), {"checkpoint": [3]}, "hamburger: checkpoint must be None or str, got 3"),
        (("vanilla",), {"k": [2]}, "no chosen method has the knob 'k'"),
        (("vanilla",), {"vanilla.k": [2]}, "method 'vanilla' has no knob 'k'"),
        (("speculative[k]",), {}, "name\\[knob=value"),
    ],
)
def test_bad_requests_get_one_clear_line(methods, knobs, message):
    with pytest.raises(HambenchError, match=message):
        Sweep(model="m", methods=methods, knobs=knobs).expand()


def test_text_becomes_the_type_of_each_methods_own_field():
    texts = {"k": ("3", "7"), "prompt_lookup.n": ("2",)}
    assert parse_axes(("speculative[kv=shared]", "prompt_lookup"), texts) == {
        "speculative.k": (3, 7),
        "prompt_lookup.k": (3, 7),
        "prompt_lookup.n": (2,),
    }
    assert parse_axes(("hamburger",), {"confidence": ("1", "0.5"), "checkpoint": ("none",)}) == {
        "hamburger.confidence": (1.0, 0.5),
        "hamburger.checkpoint": (None,),
    }


@pytest.mark.parametrize(
    "config",
    [
        SpeculativeConfig(confidence=0.5, draft_stop="none"),
        SpeculativeConfig(draft_stop="goodput", kv="shared"),
        HamburgerConfig(verify=True, position_convention="hf"),
        KVPressConfig(press="knorm", kv_dtype="int8"),
    ],
    ids=lambda config: config.label,
)
def test_a_label_asks_for_the_very_setting_that_it_names(config):
    """``draft_stop=none`` was read as no rule given, which with a confidence is the rule ``product``."""
    (cell,) = Sweep(model="m", methods=(config.label,)).expand(ask_availability=False).cells
    assert config_of(cell) == config
    assert config.from_knobs(config.knobs()) == config


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"k": ("two",)}, "speculative: k must be int, got 'two'"),
        ({"checkpoint": ("x",)}, "no chosen method has the knob 'checkpoint'"),
        ({"vanilla.k": ("2",)}, "no chosen method has the knob 'vanilla.k'"),
        ({"speculative.n": ("2",)}, "method 'speculative' has no knob 'n'"),
    ],
)
def test_text_that_is_no_value_of_a_chosen_method_is_refused(texts, message):
    with pytest.raises(HambenchError, match=message):
        parse_axes(("speculative",), texts)


def test_values_stay_what_they_are_and_a_whole_number_is_a_float_where_one_is_asked():
    exact = 0.1 + 0.2
    sweep = Sweep(model="smollm2-135m", methods=("hamburger",), knobs={"confidence": [exact, 1]})
    cells = sweep.expand().cells
    assert [cell.knobs["confidence"] for cell in cells] == [exact, 1.0]
    assert all(type(cell.knobs["confidence"]) is float for cell in cells)


def test_numbers_of_numpy_become_plain_ones():
    numpy = pytest.importorskip("numpy")
    cells = Sweep(model="m", methods=("speculative",), knobs={"k": numpy.arange(2, 4)}).expand().cells
    assert [type(cell.knobs["num_draft_tokens"]) for cell in cells] == [int, int]


def test_a_config_is_a_method_and_an_axis_does_not_change_what_it_fixes():
    config = SpeculativeConfig(num_draft_tokens=8, kv="shared")
    assert labels(methods=(config, "vanilla"), knobs={"k": [2]}) == ["speculative[k=8,kv=shared]", "vanilla"]
    # a knob fixed by its long name is fixed for its alias too
    assert labels(methods=("speculative[num_draft_tokens=8]",), knobs={"k": [2]}) == ["speculative[k=8]"]


def test_unknown_method_lists_what_exists():
    with pytest.raises(UnknownNameError) as error:
        Sweep(model="m", methods=("xyz",)).expand()
    assert "vanilla" in error.value.known


def test_all_takes_what_a_newcomer_should_see_and_the_command_line_goes_before_it():
    shipped = "smollm2-135m"
    assert labels(model=shipped, methods=("all",)) == [
        "vanilla",
        "speculative[k=4]",
        "prompt_lookup",
        "suffix",
        *(f"hamburger[c={c:g}]" for c in (0.5, 0.6, 0.7, 0.8, 0.9, 1.1)),
        "hamburger[c=0.5,verify=true]",
    ]
    lengths = labels(model=shipped, methods=("all",), knobs={"speculative.k": [1, 2]})
    assert [label for label in lengths if label.startswith("spec")] == [
        "speculative[k=1]",
        "speculative[k=2]",
    ]
    swept = labels(model=shipped, methods=("all",), knobs={"confidence": [0.4, 0.8]})
    assert swept == [
        "vanilla",
        *(f"speculative[c={c},k=4]" for c in (0.4, 0.8)),
        *(f"prompt_lookup[c={c}]" for c in (0.4, 0.8)),
        *(f"suffix[c={c}]" for c in (0.4, 0.8)),
        *(f"hamburger[c={c}]" for c in (0.4, 0.8)),
        *(f"hamburger[c={c},verify=true]" for c in (0.4, 0.8)),
    ]


def test_settings_that_the_command_line_makes_one_are_run_once():
    found = labels(model="smollm2-135m", methods=("all",), knobs={"confidence": [0.5], "verify": [True]})
    assert found.count("hamburger[c=0.5,verify=true]") == 1
    assert not [label for label in found if "#" in label]


def test_what_all_leaves_out_is_said_and_only_where_all_is_asked_for():
    lines = what_all_leaves_out(("all",))
    assert any(line.startswith("all leaves out of speculative: other draft lengths") for line in lines)
    assert "transformers" in lines[-1]
    assert what_all_leaves_out(("speculative",)) == ()


def test_a_fine_tuned_methods_control_is_added_once():
    shipped = "smollm2-135m"
    one = labels(model=shipped, methods=("hamburger",), knobs={"confidence": [0.5]}, controls=True)
    assert one == ["hamburger[c=0.5]", "hamburger[c=1.1]"]
    swept = labels(model=shipped, methods=("hamburger",), controls=True)
    assert len(swept) == len(set(swept)) == 6


def test_regimes_and_kernels_are_axes_shown_only_when_they_vary():
    varied = labels(methods=("vanilla",), regimes=("eager", "graph"), kernels=("fused",))
    assert varied == ["vanilla[regime=eager]", "vanilla[regime=graph]"]
    assert labels(methods=("vanilla",), kernels=("fused",)) == ["vanilla"]
    with pytest.raises(
        HambenchError, match="kernels must be one of auto, reference, native, fused, got 'fast'"
    ):
        Sweep(model="m", kernels=("fast",))


def test_the_sweep_file_of_the_documentation_expands_as_it_says(tmp_path):
    from hambench.cli.run import command, request_from

    page = (Path(__file__).parents[2] / "docs" / "measuring.md").read_text()
    file = tmp_path / "sweep.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    options = command.make_context("run", ["--config", str(file)]).params
    for name in ("out", "resume", "report", "losslessness", "as_json"):
        options.pop(name)
    request = request_from(**options)
    cells = request.sweep.expand().cells
    assert request.limit == 10
    assert len(cells) == (1 + 2 * 5 + 5) * 2 * 2
    assert {(cell.context, cell.threads) for cell in cells} == {(c, t) for c in (1024, 4096) for t in (1, 2)}
