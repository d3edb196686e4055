"""Spoilt files either load or end in the reader's own kind of error, in a second, in a gigabyte.

`scripts/fuzz.sh` does the same for as long as it is told, with other files each time.
"""

import faulthandler
import os
import resource
import shutil
import time
from pathlib import Path
from random import Random

import pytest

from .readers import CORPUS, READERS, Reader

SECONDS = float(os.environ.get("APEX_JAX_FUZZ_SECONDS", "0"))
FIRST = int(os.environ.get("APEX_JAX_FUZZ_FIRST", "0"))
LONGEST, MEMORY, HANGS = 1.0, 1 << 30, 120
"""Processor seconds of one file, bytes beside what is in use, seconds after which a file has not ended."""


@pytest.fixture
def bounded():
    """A gigabyte more than is in use, and an end for what does not end."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(params=READERS)
def reader(request):
    return request.param, READERS[request.param]


def spoilt(reader: Reader, seed: int, folder: Path) -> Path:
    """Write the file of a seed, and what belongs beside it."""
    random = Random(seed)
    sound = random.choice(reader.corpus)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = reader.place(sound, folder)
    path.write_bytes(reader.mutate(random, sound.read_bytes()))
    return path


def judge(reader: Reader, path: Path) -> str | None:
    """Return what is wrong with how a file was read, twice where once took long; None if nothing is.

    Of a machine that others use, processor seconds are more than they are.
    """
    wrong = judge_once(reader, path)
    return judge_once(reader, path) if wrong and wrong.endswith(" s") else wrong


def judge_once(reader: Reader, path: Path) -> str | None:
    begin = time.thread_time()
    try:
        reader.read(path)
    except reader.errors as error:
        if len(str(error)) > 5000:
            return f"an error of {len(str(error)):,} characters"
        if not str(error):
            return f"an empty {type(error).__name__}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    spent = time.thread_time() - begin
    return f"{spent:.1f} s" if spent > LONGEST else None


@pytest.mark.usefixtures("bounded")
def test_spoilt_files(reader, tmp_path, record_property):
    name, reader = reader
    for sound in reader.corpus:
        folder = tmp_path / "sound"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = reader.place(sound, folder)
        shutil.copy(sound, path)
        reader.read(path)
    end, seed, found = time.monotonic() + SECONDS, FIRST, []
    while time.monotonic() < end if SECONDS else seed < reader.cases:
        # Of a process that is ended here, the file is left behind, under its seed.
        folder = tmp_path / f"seed{seed}"
        path = spoilt(reader, seed, folder)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        if wrong := judge(reader, path):
            kept = CORPUS.parents[2] / "build" / "fuzz" / f"{name}-{seed}"
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            found.append(f"{wrong}, file {path.name} in {kept}")
        shutil.rmtree(folder)
        seed += 1
    record_property("files", seed - FIRST)
    assert not found, f"{len(found)} of {seed - FIRST}:\n" + "\n".join(found[:20])


@pytest.mark.usefixtures("bounded")
def test_seeds_are_repeatable(tmp_path):
    for name, reader in READERS.items():
        first, again = (spoilt(reader, 3, tmp_path / f"{name}{i}").read_bytes() for i in range(2))
        assert first == again
        assert len({spoilt(reader, seed, tmp_path / name).read_bytes() for seed in range(20)}) > 10


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("read", [lambda path: path.unknown, lambda path: [0] * (1 << 32), lambda path: 1 / 0])
def test_other_errors_are_found(tmp_path, read):
    reader = Reader(corpus=[CORPUS / "index" / "index.json"], mutate=lambda _, c: c, read=read, errors=(ValueError,))
    assert judge(reader, tmp_path).split(":")[0] in ("AttributeError", "MemoryError", "ZeroDivisionError")


def test_long_reading_is_found(tmp_path):
    def read(path):
        begin = time.thread_time()
        while time.thread_time() < begin + 1.1:
            pass

    reader = Reader(corpus=[], mutate=lambda _, content: content, read=read, errors=())
    assert judge(reader, tmp_path) == "1.1 s"
