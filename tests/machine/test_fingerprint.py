from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hambench.machine import fingerprint as environment


def test_the_fingerprint_is_json_scalars_and_names_no_host_user_or_folder() -> None:
    found = environment.fingerprint()
    text = json.dumps(found)
    assert all(value is None or isinstance(value, str | int | float | bool) for value in found.values())
    assert str(Path(environment.__file__).resolve().parent.parent) not in text
    assert str(Path.home()) + "/" not in text
    words = {word for value in found.values() if isinstance(value, str) for word in value.split()}
    assert not words & {socket.gethostname(), getpass.getuser()}


def test_the_fingerprint_holds_every_checked_key() -> None:
    # the runner adds these two once a cell runs the native engine
    added_later = {"native_instruction_set", "native_compiler"}
    checked = {*environment.SPEED_KEYS, *environment.ACCURACY_KEYS}
    assert added_later <= checked
    assert checked - added_later <= environment.fingerprint().keys()


def test_the_fingerprint_does_not_import_torch() -> None:
    code = "import sys; from hambench.machine import fingerprint as e; e.fingerprint(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_torch_threads_are_those_of_the_running_process() -> None:
    import torch

    assert environment.fingerprint()["torch_threads"] == torch.get_num_threads()


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_a_checkout_with_its_dirty_flag(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit, dirty = environment.commit_of(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "file").write_text("2")
    assert environment.commit_of(tmp_path) == (commit, True)


def test_a_folder_inside_somebodys_repository_has_no_commit_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert environment.commit_of(inside) == (None, None)


def test_differences_name_the_keys_and_both_values() -> None:
    a, b = {"cpu": "x", "torch": "1", "kernel": "a"}, {"cpu": "y", "torch": "1", "kernel": "b"}
    assert environment.differences(a, b, environment.SPEED_KEYS) == {"cpu": "x → y"}


def test_a_key_that_one_side_never_recorded_is_no_difference() -> None:
    assert environment.differences({"torch": "1"}, {"torch": "1", "rouge": "1.0"}, ("torch", "rouge")) == {}
    assert environment.differences({"rouge": None}, {"rouge": "1.0"}, ("rouge",)) == {"rouge": "None → 1.0"}


def test_packages_that_can_change_a_score_are_recorded() -> None:
    for name in ("lm_eval", "rouge", "jieba", "nltk", "langdetect"):
        assert name in environment.ACCURACY_KEYS


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_versions_come_from_the_installed_distribution(name: str) -> None:
    assert environment.package_version(name)
    assert environment.package_version("no-such-distribution-anywhere") is None
