import pytest

from hambench.errors import HambenchError
from hambench.runner.axis_text import MAX_VALUES, expand_values, parse_method, split_methods
from hambench.runner.sweep import MAX_CELLS, Sweep


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:9/v1",
        "http://host:8000",
        "http://[::1]:8000/v1",
        "a:b:c",
        "./it's",
        "[x]",
        "C:/models/x",
    ],
)
def test_an_ordinary_value_is_itself(text):
    assert expand_values(text) == (text,)
    assert parse_method(f"m[knob={text}]") == ("m", {"knob": text})
    assert split_methods(f"vanilla,m[knob={text}],m") == ("vanilla", f"m[knob={text}]", "m")


@pytest.mark.parametrize("value", ["./a,b", "1:4:1", "a]b", "k=2,c", " padded ", "it's"])
def test_quotes_switch_the_grammar_off(value):
    assert expand_values(f'x,"{value}"') == ("x", value)
    word = f'speculative[k=2,draft="{value}"]'
    assert split_methods(f"vanilla,{word}") == ("vanilla", word)
    assert parse_method(word) == ("speculative", {"k": "2", "draft": value})


def test_a_comma_in_brackets_belongs_to_the_value_unless_a_knob_follows():
    assert parse_method("speculative[draft=./a,b,k=2]") == ("speculative", {"draft": "./a,b", "k": "2"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nan:1:0.1", "finite"),
        ("0:inf:1", "finite"),
        ("1:2:x", "finite"),
        ("0:1:1e-9", f"at most {MAX_VALUES} values"),
        ("0:1e308:1e-308", f"at most {MAX_VALUES} values"),
        ("'open", "not closed"),
        ("'a'b", "ends with its quote"),
        ('""', "needs values"),
    ],
)
def test_a_slip_in_an_axis_is_refused_at_once(text, reason):
    with pytest.raises(HambenchError, match=reason):
        expand_values(text)


@pytest.mark.parametrize("word", ["m[", "m[x]", "m[k=1", "m[k=1]x", "m[k=1,k=2]", "m[k='a'b]"])
def test_a_slip_in_brackets_is_refused(word):
    with pytest.raises(HambenchError, match=r"knob=value|twice|ends with its quote"):
        parse_method(word)


def test_axes_that_multiply_to_too_many_cells_are_refused_at_once():
    axis = tuple(range(1, 1001))
    sweep = Sweep(model="m", methods=("speculative",), knobs={"k": axis}, threads=tuple(range(1, 1001)))
    with pytest.raises(HambenchError, match=f"1000000 cells together, at most {MAX_CELLS}"):
        sweep.expand()
