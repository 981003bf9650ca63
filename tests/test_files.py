import os
import stat
import threading

import pytest

from hambench.errors import StoreError
from hambench.files import making_folder, printable, remember, replacing, write_bytes, write_new, write_text


def test_a_link_is_written_through(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_dangling_link_gets_its_file(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "later")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "later").read_text() == "new"


def test_a_pipe_is_written_into(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join(timeout=10)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert received == [b"through the pipe"]


def test_a_link_to_a_device_stays_one(tmp_path):
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    write_text(link, "gone")
    assert link.is_symlink()
    assert stat.S_ISCHR(link.stat().st_mode)


def test_a_replaced_file_keeps_its_mode_and_leaves_nothing_beside_it(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o640)
    write_bytes(file, b"new", durable=True)
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_has_the_mode_of_every_new_file_whatever_a_library_gives_it(tmp_path):
    def private(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "weights") as partial:
        private(partial)
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == usual
    (tmp_path / "weights").chmod(0o640)
    with replacing(tmp_path / "weights") as partial:
        private(partial)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == 0o640


@pytest.mark.parametrize("write", [write_text, lambda path, text: write_new(path, text.encode())])
@pytest.mark.parametrize("name", ["file/below", "x" * 300, "folder"])
def test_what_can_not_be_written_is_one_error_that_names_it(tmp_path, write, name):
    (tmp_path / "file").write_text("a file where a folder should be")
    (tmp_path / "folder").mkdir()
    with pytest.raises((StoreError, FileExistsError), match=name[:20]):
        write(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_longest_name_can_be_written(tmp_path):
    file = tmp_path / ("x" * 255)
    write_text(file, "text")
    assert file.read_text() == "text"


def test_an_interrupted_writer_leaves_the_old_content(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def interrupted():
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_only_saves_time_is_never_an_error(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    assert not remember(tmp_path / "file" / "cache.json", "{}")
    assert remember(tmp_path / "cache" / "cache.json", "{}")


def test_the_odd_bytes_of_a_name_are_spelled_out():
    assert printable(os.fsdecode(b"m\xff")) == "m\\xff"
    assert printable("模型") == "模型"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "parent" / "folder"

    def fill(*names, fails=False):
        with making_folder(folder) as filled:
            assert list(filled.iterdir()) == []
            for name in names:
                (filled / name).write_text(name)
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill("old", fails=True)
    assert list(folder.parent.iterdir()) == []
    fill("old")
    with pytest.raises(KeyboardInterrupt):
        fill("new", fails=True)
    assert [each.name for each in folder.iterdir()] == ["old"]
    fill("new", "newer")
    assert sorted(each.name for each in folder.iterdir()) == ["new", "newer"]
    assert list(folder.parent.iterdir()) == [folder]
