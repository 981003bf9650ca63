import pytest

from hambench.terminal_text import terminal_safe


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\x07b\rc\x08", r"a\x07b\x0dc\x08"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("\udcff", r"\udcff"),
        ("two\nlines\tand 東京 👨‍👩‍👧 \u3000", "two\nlines\tand 東京 👨‍👩‍👧 \u3000"),
    ],
)
def test_what_a_terminal_obeys_is_spelled_out_and_text_is_left_alone(text, shown):
    assert terminal_safe(text) == shown
