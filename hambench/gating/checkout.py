"""Installs another version of the code next to this one, as a git worktree with its own environment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hambench.errors import HambenchError
from hambench.pip import run_pip


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An installed version of hambench that can run a process."""

    name: str
    """Short name for reports: ``main (1a2b3c4d)``."""
    commit: str
    python: str
    """Path of its environment's interpreter."""
    package: Path
    """Folder that this interpreter imports hambench from."""


@contextlib.contextmanager
def checked_out(ref: str, *, repository: Path | None = None) -> Iterator[Code]:
    """Installs a commit into its own environment while the context lasts.

    If both versions declare the same dependencies, the environment uses this one's packages, so that both arms run the
    same torch. If they differ, the commit gets the dependencies that it declares.

    Args:
        ref: Anything that git resolves to a commit.
        repository: A folder in the repository; defaults to the current one.

    Raises:
        HambenchError: If the ref is unknown or the version can't be installed.
    """
    here = (repository or Path.cwd()).resolve()
    root = Path(_git(here, "rev-parse", "--show-toplevel")).resolve()
    project = _project_of(here, root)
    commit = _git(
        root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", what=f"git has no commit {ref!r}"
    )
    with tempfile.TemporaryDirectory(prefix="hambench-base-") as scratch:
        tree = Path(scratch) / "code"
        _git(root, "worktree", "add", "--detach", "--force", str(tree), commit)
        try:
            python = _install(tree / project.relative_to(root), project, Path(scratch) / "env")
            package = _run(
                [python, "-P", "-c", "import hambench, os; print(os.path.dirname(hambench.__file__))"]
            )
            yield Code(
                name=f"{ref} ({commit[:8]})", commit=commit, python=python, package=Path(package.strip())
            )
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def same_dependencies(ours: Path, theirs: Path) -> bool:
    """Returns whether two ``pyproject.toml`` files declare the same dependencies."""
    return _dependencies(ours) == _dependencies(theirs)


def _project_of(folder: Path, root: Path) -> Path:
    """Searches upwards from a folder for ``pyproject.toml``; returns the repository's root if there is none."""
    for each in (folder, *folder.parents):
        if (each / "pyproject.toml").is_file():
            return each
        if each == root:
            break
    return root


def _dependencies(path: Path) -> list[str]:
    try:
        project: dict[str, list[str]] = tomllib.loads(path.read_text(encoding="utf-8-sig"))["project"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise HambenchError(f"{path} is not a pyproject.toml with a [project] table: {error}") from error
    return sorted(project.get("dependencies", []))


def _install(tree: Path, project: Path, environment: Path) -> str:
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    python = str(environment / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    shared = same_dependencies(project / "pyproject.toml", tree / "pyproject.toml")
    if shared:
        site = Path(_run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        # plain paths in a .pth file: Python ignores the editable installs in them, so this version can't leak in
        (site / "hambench_shared.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    run_pip(
        [
            *("--python", python, "install", "--quiet", "--no-input"),
            *(["--no-deps", "--ignore-installed"] if shared else []),
            *(["--no-build-isolation"] if shared and _has_setuptools() else []),
            str(tree),
        ]
    )
    return python


def _has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


def _git(folder: Path, *arguments: str, what: str | None = None) -> str:
    return _run(["git", "-C", str(folder), *arguments], what=what).strip()


def _run(command: Sequence[str], *, what: str | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HambenchError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        name = " ".join(Path(command[0]).name if i == 0 else word for i, word in enumerate(command[:6]))
        raise HambenchError(what or f"`{name} …` failed: {lines[-1] if lines else 'no message'}")
    return done.stdout
