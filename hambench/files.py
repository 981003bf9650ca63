"""Writes files atomically; the only module that replaces, creates or refuses a file.

It replaces only regular files. It writes through links and into pipes and devices, because ``-o FILE`` may be any of
them, and a rename would replace them by a plain file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from hambench.errors import HambenchError, StoreError


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that must not exist yet, atomically and safely against a second writer.

    Raises:
        FileExistsError: If it exists.
        StoreError: If it can't be written.
    """
    temporary = _temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(temporary, content)
        # a link fails if the name is taken, while a rename would replace another writer's file
        os.link(temporary, path)
    except FileExistsError:
        if path.exists():
            raise
        raise StoreError(f"can't write {path}: {path.parent} is not a folder") from None
    except OSError as error:
        raise StoreError(f"can't write {path}: {reason_of(error)}") from error
    finally:
        _discard(temporary)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file like :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes a file, or replaces a regular one; a reader sees the old or the new content, never a part.

    Args:
        path: The file; follows links and writes into pipes and devices.
        content: The whole content.
        durable: Whether to sync the content to disk before returning.

    Raises:
        StoreError: If it can't be written.
    """
    try:
        if _is_stream(path):
            with path.open("wb") as file:
                file.write(content)
            return
        with replacing(path) as temporary:
            if durable:
                _write_durably(temporary, content)
            else:
                temporary.write_bytes(content)
    except OSError as error:
        raise StoreError(f"can't write {path}: {reason_of(error)}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name; its file replaces the one at ``path`` if the block succeeds.

    Raises:
        OSError: If the file can't be replaced.
    """
    # write next to a link's target, because a rename would replace the link
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(place)
    try:
        # that of the file there, or of any new file: libraries may write one that only its owner can read
        temporary.touch()
        mode = stat.S_IMODE((place if place.exists() else temporary).stat().st_mode)
        temporary.unlink()
        yield temporary
        with contextlib.suppress(OSError):
            temporary.chmod(mode)
        temporary.replace(place)
    finally:
        _discard(temporary)


@contextlib.contextmanager
def making_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which replaces ``folder`` if the block succeeds.

    It is next to ``folder``, and its name begins with a dot and the folder's name.

    Raises:
        OSError: If the folder can't be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # a rename within one file system is atomic
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        filled = Path(scratch) / "filled"
        filled.mkdir()
        yield filled
        if folder.exists():
            shutil.rmtree(folder)
        filled.rename(folder)


def remember(path: Path, text: str) -> bool:
    """Writes a cache file; returns false instead of raising if it can't be written."""
    try:
        write_text(path, text)
    except StoreError:
        return False
    return True


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder; returns the folders that were missing, innermost first."""
    missing = []
    for each in (folder, *folder.parents):
        if each.exists():
            break
        missing.append(each)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns an ``OSError`` on writing to a folder into one clear line.

    Raises:
        StoreError: If there is one; the message gives the reason.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"can't write to {folder}: {reason_of(error)}; what was stored before is intact"
        ) from error


def expanded(path: str | Path) -> Path:
    """Returns the path with a leading ``~`` or ``~user`` replaced by that user's home folder.

    Raises:
        HambenchError: If the user does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HambenchError(f"{path}: no user of that name has a home folder here") from error


def reason_of(error: OSError) -> str:
    """Returns the reason of an operating system error in a few words."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error) or type(error).__name__


def printable(text: str) -> str:
    r"""Escapes bytes that are not UTF-8 (``\xff``), because a file name may contain any bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    return text


def _is_stream(path: Path) -> bool:
    """Returns whether to write into an existing pipe, socket, device or name of an open file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    named_by_the_system = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or (named_by_the_system and not stat.S_ISDIR(mode))


def _temporary_beside(path: Path) -> Path:
    # a short name, because one that contained the original could exceed the limit
    return path.with_name(f".{uuid.uuid4().hex[:16]}.partial")


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _discard(path: Path) -> None:
    # a parent that is not a folder fails here again
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
