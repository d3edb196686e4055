"""Files of ours: whole or not there, with any number of writers, after a kill, and through links and pipes."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from apex_jax.files import whole_file as module
from apex_jax.files.whole_file import check_writable, whole_file

NAMELESS = hasattr(os, "O_TMPFILE") and os.path.isdir(module._DESCRIPTORS)


def save(path, text):
    with whole_file(path) as file:
        file.write(text)


@pytest.fixture(params=["nameless", "named"])
def folder(request, tmp_path, monkeypatch):
    """A folder on a file system that has files without names, and on one that has none."""
    if request.param == "named":
        monkeypatch.setattr(module, "_DESCRIPTORS", str(tmp_path / "none"))
    elif not NAMELESS:
        pytest.skip("this system has no files without names")
    inner = tmp_path / "folder"
    inner.mkdir()
    return inner


def test_what_is_written_is_read(folder):
    save(folder / "a", "one\r\ntwo\nä")
    assert (folder / "a").read_bytes() == "one\r\ntwo\nä".encode()
    with whole_file(folder / "a", binary=True) as file:
        file.write(b"\xff")
    assert (folder / "a").read_bytes() == b"\xff"
    assert [file.name for file in folder.iterdir()] == ["a"]


def test_nothing_changes_until_the_end_nor_after_an_exception(folder):
    save(folder / "a", "before")
    with whole_file(folder / "a") as file:
        file.write("after")
        file.flush()
        assert (folder / "a").read_text() == "before"
    assert (folder / "a").read_text() == "after"
    with pytest.raises(ZeroDivisionError), whole_file(folder / "a") as file:
        file.write(f"half {1 / 0}")
    assert (folder / "a").read_text() == "after"
    assert [file.name for file in folder.iterdir()] == ["a"]


def test_many_writers_of_one_file(folder):
    """By 6 threads at once, with readers that never see a part of what is written."""
    path, stop = folder / "profile.json", threading.Event()
    whole = {f"{writer}" * 20_000 for writer in range(6)}
    save(path, "0" * 20_000)
    seen = []

    def read():
        while not stop.is_set():
            seen.append(path.read_text() in whole)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with ThreadPoolExecutor(6) as pool:
        for written in [pool.submit(save, path, f"{number % 6}" * 20_000) for number in range(300)]:
            written.result()
    stop.set()
    for reader in readers:
        reader.join()
    assert seen
    assert all(seen)
    assert [file.name for file in folder.iterdir()] == ["profile.json"]


WRITER = """
import sys
from apex_jax.files import whole_file as module
if sys.argv[2] == "named":
    module._DESCRIPTORS = "/none"
with module.whole_file(sys.argv[1]) as file:
    file.write("half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", [*(["nameless"] if NAMELESS else []), "named"])
def test_a_killed_writer(tmp_path, kind):
    """Nothing is left where files need no name; elsewhere a writer an hour later takes it away."""
    path = tmp_path / "a"
    save(path, "before")
    other = tmp_path / ".b.1-0.part"
    other.touch()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert path.read_text() == "before"
    left = [file for file in tmp_path.iterdir() if file not in (path, other)]
    assert len(left) == (kind == "named")
    assert all(file.name.startswith(".a.") for file in left)
    save(path, "soon after")
    assert all(file.exists() for file in left), "the writer might still be at it"
    for file in (*left, other):
        os.utime(file, (time.time() - 4000,) * 2)
    save(path, "later")
    assert {file.name for file in tmp_path.iterdir()} == {"a", other.name}


def test_who_may_read_it(folder):
    before = os.umask(0o027)
    try:
        save(folder / "new", "")
        (folder / "old").touch(0o600)
        save(folder / "old", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((folder / "old").stat().st_mode) == 0o600


def test_links_lead_to_what_is_written(folder):
    (folder / "there").mkdir()
    (folder / "link").symlink_to(folder / "there" / "file")
    check_writable(folder / "link")
    save(folder / "link", "x")
    assert (folder / "link").is_symlink()
    assert (folder / "there" / "file").read_text() == "x"


def test_what_is_no_file_is_written_to(folder):
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        save(pipe, "through")
        assert read.result() == "through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    check_writable(os.devnull)
    save(os.devnull, "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("write", [check_writable, lambda path: save(path, "x")])
def test_where_nothing_can_be_written(folder, write):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/none/a'"):
        write(folder / "none" / "a")
    (folder / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/a'"):
        write(folder / "file" / "a")
    with pytest.raises(IsADirectoryError):
        write(folder)


def test_looking_leaves_nothing_behind(folder):
    check_writable(folder / "a")
    assert list(folder.iterdir()) == []
    save(folder / "a", "x")
    check_writable(folder / "a")
    assert (folder / "a").read_text() == "x"
    assert [file.name for file in folder.iterdir()] == ["a"]
