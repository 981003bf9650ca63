"""Files that are written once and whole, and never over another's."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from hambench.errors import StoreError


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that must not exist yet: whole or not at all, and safe against a second writer.

    Raises:
        FileExistsError: If it exists.
        StoreError: If it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # a link fails where the name is taken; a rename would replace what another writer put there
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file, whole or not at all.

    Raises:
        StoreError: If it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
