import pytest

from hambench.errors import DataError
from hambench.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1:2:1", "1:2:1"),
        ("1:30", "1:30"),
        ("010", 10),
        ("0o10", 8),
        ("1_0", "1_0"),
        ("off", "off"),
        ("no", "no"),
        ("2026-01-31", "2026-01-31"),
        ("true", True),
        ("null", None),
        ("", None),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("'1'", "1"),
        ("0x1F", 31),
    ],
)
def test_a_plain_value_is_what_yaml_1_2_says(tmp_path, written, value):
    file = tmp_path / "file.yaml"
    file.write_text(f"key: {written}\n")
    assert read_yaml(file) == {"key": value}
    words = read_yaml(file, as_words=True)["key"]
    assert words == (None if value is None else written.strip("'"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: 1\nb: 2\na: 3\n", "'a' is there twice, first on line 1.*line 3"),
        (b"tasks:\n  - {task: x, task: y}\n", "'task' is there twice"),
        (b"a: [", "is not YAML"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"a: \x00", "is not YAML"),
        (b"[" * 20_000, "nested too deeply"),
        (b"? [a]\n: b", "a key is one plain value"),
        (b"a: !!python/object/apply:os.system [true]", "is not YAML"),
        (b"a: " + b"9" * 5000, "is not YAML"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path, content, reason):
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.yaml.*{reason}") as error:
        read_yaml(file)
    assert "\n" not in str(error.value)


def test_a_file_with_a_mark_and_windows_line_ends_is_read(tmp_path):
    file = tmp_path / "file.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert read_yaml(file) == {"a": 1, "b": "x"}


@pytest.mark.parametrize("as_words", [False, True])
@pytest.mark.parametrize("content", [r'a: ["\ud83d"]', r'"\udfff": 1', r'a: "x\ud83d\ud83dx"'])
def test_half_a_surrogate_pair_is_not_text(tmp_path, content, as_words):
    (tmp_path / "x.yaml").write_text(f"# a file\n{content}\n")
    with pytest.raises(
        DataError, match=r"x\.yaml is not YAML: half a surrogate pair is not text in .*, line 2"
    ):
        read_yaml(tmp_path / "x.yaml", as_words=as_words)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.yaml"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(DataError, match="Is a directory"):
        read_yaml(tmp_path)
