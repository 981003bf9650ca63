"""Files written whole or not at all: the one place that replaces, creates or refuses a file.

Only a regular file is ever replaced. A link is written through, and a pipe or a device is written into: ``-o FILE`` may
be any of them, and a rename would put a plain file in its place.
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
    """Writes a file that must not exist yet: whole or not at all, and safe against a second writer.

    Raises:
        FileExistsError: If it exists.
        StoreError: If it can't be written.
    """
    temporary = _temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(temporary, content)
        # a link fails where the name is taken; a rename would replace what another writer put there
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
    """Writes or replaces a text file, as :func:`write_bytes` does."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes a file, or replaces a regular one: a reader sees the old content or the new, never a part.

    Args:
        path: A link is followed; a pipe or a device is written into.
        content: All of it.
        durable: Whether the content is on the disk when this returns.

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
    """Gives a name to write under; the file of that name replaces the one at ``path`` when the block ends well.

    Raises:
        OSError: If the file can't be put there.
    """
    # written next to what a link points to: a rename would replace the link
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(place)
    try:
        yield temporary
        with contextlib.suppress(OSError):
            shutil.copymode(place, temporary)
        temporary.replace(place)
    finally:
        _discard(temporary)


@contextlib.contextmanager
def making_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which takes the place of ``folder`` when the block ends well.

    It lies next to ``folder`` meanwhile: its name begins with a dot and the folder's name.

    Raises:
        OSError: If the folder can't be put there.
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
    """Writes a file that only saves time; gives false where it can't be written, and never raises for that."""
    try:
        write_text(path, text)
    except StoreError:
        return False
    return True


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder; gives those that were missing, the innermost first."""
    missing = []
    for each in (folder, *folder.parents):
        if each.exists():
            break
        missing.append(each)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns an ``OSError`` of a folder that is written to into one clear line.

    Raises:
        StoreError: With the reason.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"can't write to {folder}: {reason_of(error)}; what was stored before is intact"
        ) from error


def expanded(path: str | Path) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by that user's home folder.

    Raises:
        HambenchError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HambenchError(f"{path}: no user of that name has a home folder here") from error


def reason_of(error: OSError) -> str:
    """Why the system refused, in a few words."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error) or type(error).__name__


def printable(text: str) -> str:
    r"""The text with what is not UTF-8 spelled out (``\xff``): the bytes of a file name need not be any text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    return text


def _is_stream(path: Path) -> bool:
    """Whether writing goes into what is there: a pipe, a socket, a device, or a name of an open file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    named_by_the_system = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or (named_by_the_system and not stat.S_ISDIR(mode))


def _temporary_beside(path: Path) -> Path:
    # short whatever the name: with the name in it, the longest names would be too long
    return path.with_name(f".{uuid.uuid4().hex[:16]}.partial")


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _discard(path: Path) -> None:
    # a parent that is no folder says so here again
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
