"""The kernels are compiled once a machine by whoever comes first, and missed without harm."""

import ctypes
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which

import pytest

from batchloom.models.layers.native import build, library

has_compiler = pytest.mark.skipif(which("g++") is None, reason="no g++")
SMALL = 'extern "C" int seven() { return 7; }'
WAITS = """
import sys, time
from pathlib import Path
from batchloom.models.layers.native import build
build.SOURCES = Path(sys.argv[1])
print(build.library_file(Path(sys.argv[2])))
"""


@pytest.fixture
def loaded(monkeypatch):
    """Forgets what was loaded, before and after."""
    monkeypatch.setattr(library, "features", lambda: build.FEATURES)
    library._loaded.cache_clear()
    yield library.kernels
    library._loaded.cache_clear()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with one small source, in place of the kernels."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "small.cpp").write_text(SMALL)
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


@has_compiler
def test_processes_that_start_at_once_compile_once(tmp_path, sources):
    calls = tmp_path / "calls"
    compiler = tmp_path / "counting"
    compiler.write_text(f'#!/bin/sh\necho >> {calls}\nsleep 1\nexec g++ "$@"\n')
    compiler.chmod(0o755)

    def run(_) -> str:
        command = [sys.executable, "-c", WAITS, str(sources), str(tmp_path / "cache")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={"CXX": str(compiler), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        )
        return done.stdout

    with ThreadPoolExecutor(3) as executor:
        (path,) = set(executor.map(run, range(3)))
    assert calls.read_text() == "\n"
    assert [one.name for one in (tmp_path / "cache").glob("*.so")] == [path.strip().rpartition("/")[2]]


@has_compiler
def test_other_sources_are_another_library(tmp_path, sources):
    first = build.library_file(tmp_path)
    assert build.library_file(tmp_path) == first
    (sources / "small.cpp").write_text(SMALL.replace("7", "8"))
    assert build.library_file(tmp_path) != first


@has_compiler
@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:0], lambda whole: whole[:1000], lambda whole: whole[:-1] + b"?"]
)
def test_a_damaged_library_is_made_anew(tmp_path, damage):
    """A node that lost power left half a file: loading it was a bus error, in each replica from then on."""
    path = build.library_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert build.library_file(tmp_path) == path
    assert path.read_bytes() == whole
    assert ctypes.CDLL(str(path)).seven() == 7


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("sh -c 'echo no such option >&2; exit 1'", "failed: no such option"),
        ("sh -c 'echo warning: old >&2; echo x.cpp: error: unknown >&2; exit 1'", "failed: x.cpp: error: unknown"),
        ("sh -c 'printf \"\\351t\\351\" >&2; exit 1'", "failed: \ufffdt\ufffd"),  # words in Latin-1
        ("true", "failed: no words"),  # and no library
        ("/no/such/compiler -m64", "/no/such/compiler cannot be run: No such file or directory"),
        ('g++ "-m64', 'CXX = g.. "-m64 cannot be read: No closing quotation'),
    ],
)
def test_a_compiler_that_fails_is_named_with_its_words(tmp_path, monkeypatch, compiler, message):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.BuildError, match=message):
        build.library_file(tmp_path)
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.usefixtures("sources")
def test_a_compiler_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    """g++ is several processes: the others held its pipe open, and were waited for without end."""
    monkeypatch.setattr(build, "SECONDS_TO_COMPILE", 0.5)
    held = tmp_path / "held"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setenv("CXX", f"sh -c 'sleep 60 > {held} & wait'")
    start = time.monotonic()
    with pytest.raises(build.BuildError, match=r"sh took more than 0\.5 s"):
        build.library_file(tmp_path)
    while _is_held(reader):
        assert time.monotonic() - start < 30, "the compiler's child goes on"
        time.sleep(0.02)
    os.close(reader)


def _is_held(reader: int) -> bool:
    """Whether a process has the other end of a pipe."""
    try:
        return os.read(reader, 1) != b""
    except BlockingIOError:
        return True


def test_without_a_compiler_plain_torch_computes_and_one_warning_says_so(tmp_path, monkeypatch, loaded, caplog):
    monkeypatch.setenv("BATCHLOOM_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert loaded() is None
        assert loaded() is None
    (said,) = caplog.messages
    assert "since there is no C++ compiler (g++). They need a C++ compiler on each node, or BATCHLOOM_KERNELS=0" in said


def test_the_switch_and_other_processors_are_passed_over_in_silence(monkeypatch, loaded, caplog):
    monkeypatch.setenv(library.SWITCH, "0")
    assert loaded() is None
    monkeypatch.delenv(library.SWITCH)
    library._loaded.cache_clear()
    monkeypatch.setattr(library, "features", lambda: build.FEATURES - {"avx512_vnni"})
    assert loaded() is None
    assert not caplog.messages


@has_compiler
@pytest.mark.skipif(not build.features() >= build.FEATURES, reason="another processor")
def test_a_home_that_takes_no_files_is_no_obstacle(tmp_path, monkeypatch, loaded):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BATCHLOOM_CACHE", str(tmp_path / "file"))
    assert loaded() is not None


@pytest.mark.skipif(not build.features() >= build.FEATURES, reason="another processor")
def test_a_user_without_a_home_gets_no_folder_of_that_name(monkeypatch, loaded):
    """A number that no user has, as some clusters run containers: '~' was a folder of the working directory."""

    def user(_):
        raise KeyError("no such user")

    def library_file(cache):
        asked.append(cache)
        raise build.BuildError("enough is known")

    asked: list[Path] = []
    for name in ("BATCHLOOM_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", user)
    monkeypatch.setattr(library, "library_file", library_file)
    assert loaded() is None
    (folder,) = asked
    assert folder.is_absolute()
