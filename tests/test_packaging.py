"""What ends up in the wheel: the five folders under one import name, with their data."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = PROJECT["tool"]["setuptools"]["package-dir"]


def packages_on_disk() -> set[str]:
    found = set()
    for name, folder in MAPPED.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([name, *below]))
    return found


def test_every_package_on_disk_is_declared():
    """setuptools drops a sub-package that is missing from the list without a word."""
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_folder_with_sources_is_a_package():
    without = {
        str(path.parent.relative_to(ROOT))
        for folder in MAPPED.values()
        for path in (ROOT / folder).rglob("*.py")
        if not (path.parent / "__init__.py").is_file() and "checkpoints" not in path.parts
    }
    assert without == set()


@pytest.mark.slow
def test_the_wheel_holds_hambench_only_and_its_data(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hambench"}
    sources = {
        str(Path(name.replace(".", "/")) / path.relative_to(ROOT / folder))
        for name, folder in MAPPED.items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert sources <= set(names)
    assert any(name.startswith("hambench/reports/page/templates/") for name in names)
    native = {f"hambench/kernels/cpu/source/{path.name}" for path in (ROOT / "kernels/cpu/source").iterdir()}
    assert native
    assert native <= set(names)


def test_the_version_is_told_once():
    import hambench

    assert hambench.__version__ == PROJECT["project"]["version"]
