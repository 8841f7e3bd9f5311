import errno
import os
import subprocess
import sys

import pytest

from frechet.report import _files as files
from frechet.report._files import ensure_writable, locked, write_atomic


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    write_atomic(target, "new ü")
    write_atomic(tmp_path / "b.bin", b"\x00\x01")
    assert target.read_text(encoding="utf-8") == "new ü"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fills_up_leaves_the_old_file_and_one_sentence(tmp_path, monkeypatch, step):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match=r"cannot write .*a.txt: the disk is full; free some space or choose") as caught:
        write_atomic(target, "new")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_link_keeps_pointing_and_a_folder_is_no_file(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_atomic(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    with pytest.raises(OSError, match="it is not a regular file"):
        write_atomic(tmp_path, "x")


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = ensure_writable(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="it is a file, not a folder; choose another output folder"):
        ensure_writable(tmp_path / "file")

    def denied(*_):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OSError, match="permission denied; choose another output folder"):
        ensure_writable(tmp_path)


def test_what_will_be_written_is_looked_at_before_the_work(tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*index.html: it is not a regular file"):
        ensure_writable(tmp_path, ("report.json", "index.html"))
    (tmp_path / "index.html").rmdir()
    (tmp_path / "index.html").symlink_to(tmp_path / "missing" / "page.html")
    with pytest.raises(OSError, match=r"cannot write .*index.html: No such file or directory"):
        ensure_writable(tmp_path, ("report.json", "index.html"))


def test_two_reports_cannot_be_made_in_one_folder(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(OSError, match=r"another report is being made in .*wait until it"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # the lock ends with its holder
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_report_left_half_written_is_removed(tmp_path):
    (tmp_path / ".report.json.12-ab.part").write_text("half")
    (tmp_path / "notes.part").write_text("the user's")
    with locked(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == ["notes.part"]


KILLED = """
import os, sys
from frechet.report import _files as files
synced = files._synced
def dies(file, data):
    synced(file, data)
    os.kill(os.getpid(), 9)
files._synced = dies
files.write_atomic(sys.argv[1], "new")
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
def test_a_process_killed_while_writing_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    try:
        os.close(os.open(tmp_path, os.O_WRONLY | os.O_TMPFILE))
    except OSError:
        pytest.skip("this file system has no files without a name")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.txt"], check=False)
    assert done.returncode == -9
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
