"""NLTK's sentence data (``punkt_tab``, English), which two of IFEval's checks need, without NLTK's download server.

NLTK fetches it from GitHub. The PyPI package ``llama-index-core`` carries the same files: its wheel is fetched alone
(never installed, never run), compared with the sha256 pinned here, and the English files are taken out of it.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from hambench.errors import HambenchError
from hambench.paths import cache_dir
from hambench.pip import run_pip

REQUIREMENT = "llama-index-core==0.14.25"
WHEEL_SHA256 = "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1"
_IN_WHEEL = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"
_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


def punkt_folder() -> Path:
    """Where hambench keeps its copy; a folder for ``nltk.data.path``."""
    return cache_dir() / "nltk_data"


def find_punkt() -> bool:
    """Whether NLTK finds the data, hambench's copy included (which is then on NLTK's search path)."""
    import nltk

    own = str(punkt_folder())
    if own not in nltk.data.path:
        nltk.data.path.append(own)
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def fetch_punkt() -> str:
    """Makes sure that NLTK finds the data, fetching it once if need be; says where it is.

    Raises:
        HambenchError: If the wheel can't be fetched, is not the pinned one, or can't be kept in the cache folder.
    """
    if find_punkt():
        return "present"
    try:
        return _fetch_into(punkt_folder() / "tokenizers" / "punkt_tab" / "english")
    except OSError as error:
        raise HambenchError(
            f"the sentence data of IFEval's checks can't be kept in {punkt_folder()} ({error.strerror or error}); "
            "set HAMBENCH_CACHE to a folder that can be written"
        ) from error


def _fetch_into(folder: Path) -> str:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(punkt_folder() / ".lock"), tempfile.TemporaryDirectory(dir=punkt_folder()) as scratch:
        wheel = _download(Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise HambenchError(
                f"{wheel.name} from the package index is not the file pinned for {REQUIREMENT}"
            )
        made = Path(scratch) / "english"
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                (made / name).write_bytes(archive.read(_IN_WHEEL + name))
        if not folder.exists():
            made.rename(folder)
    if not find_punkt():
        raise HambenchError(
            f"NLTK does not find the sentence data in {punkt_folder()}; remove the folder and try again"
        )
    return str(folder)


def _download(folder: Path) -> Path:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    options += ["--retries", "1", "--timeout", "10", "--dest", str(folder)]
    try:
        run_pip(["download", REQUIREMENT, *options])
    except HambenchError as error:
        raise HambenchError(
            f"the sentence data of IFEval's checks can't be fetched ({error}); "
            "or run `python -m nltk.downloader punkt_tab` where there is a network"
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise HambenchError(f"pip fetched no wheel of {REQUIREMENT}")
    return wheels[0]
