"""Compiles the kernels into a shared library, once a machine. It knows no tensor.

Replicas are many processes that start at once, on nodes with and without a compiler. So the library is a file of the
cache, named by what it is made of; one process compiles it while others wait, and it appears under its name whole, with
a seal by which it is known to be so later. It needs nothing of torch's headers, so it takes seconds, and outlives a new
torch.
"""

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import IO

SOURCES = Path(__file__).parent
# All processors that are let in run the same instructions, so that they round alike: no -march=native.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-w"),
    *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512bf16"),
)
FEATURES = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})
"""What the processor must have, in the words of /proc/cpuinfo. What multiplies bfloat16 asks for avx512_bf16, too."""
SECONDS_TO_COMPILE = 300
SEAL_BYTES = hashlib.sha256().digest_size
"""Behind a library in its file: the hash of what is before."""


class BuildError(Exception):
    """There is no library, and why."""


def library_file(cache: Path) -> Path:
    """Return the compiled library, made in `cache` where there is none that is whole. Raises: BuildError, OSError."""
    names = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    words = (*FLAGS, os.environ.get("CXX", ""), platform.machine(), *platform.libc_ver())
    made_of = hashlib.sha256(b"\0".join([*(word.encode() for word in words), *(path.read_bytes() for path in names)]))
    path = cache / f"kernels-{made_of.hexdigest()[:16]}.so"
    if _is_whole(path):
        return path
    compiler = _compiler()
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _wait_for_others(path, stack)
        if not _is_whole(path):
            _write(path, _compiled(compiler, [str(one) for one in names if one.suffix == ".cpp"]))
    return path


@cache
def features() -> frozenset[str]:
    """Return what the processor has, in these words; nothing, where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _wait_for_others(path: Path, stack: ExitStack) -> None:
    """Hold the lock of a file, where locks work; without, each process compiles, and the last one's file stays."""
    from filelock import FileLock, Timeout  # takes asyncio along

    try:
        stack.enter_context(FileLock(f"{path}.lock", timeout=SECONDS_TO_COMPILE))
    except (Timeout, OSError, NotImplementedError):
        return


def _is_whole(path: Path) -> bool:
    """Whether a library is there and all of it: a file that was cut off kills the process that loads it."""
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        return False
    return contents[-SEAL_BYTES:] == hashlib.sha256(contents[:-SEAL_BYTES]).digest()


def _write(path: Path, library: bytes) -> None:
    """Write a library and its seal, which loaders pass over: it is behind all that a library's header tells of."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        written.write_bytes(library + hashlib.sha256(library).digest())
        os.replace(written, path)


def _compiler() -> list[str]:
    """Return the compiler and its own arguments."""
    asked = os.environ.get("CXX", "").strip()
    if not asked:
        found = shutil.which("g++") or shutil.which("c++")
        if found is None:
            raise BuildError("there is no C++ compiler (g++)")
        return [found]
    try:
        return shlex.split(asked)
    except ValueError as error:
        raise BuildError(f"the compiler CXX = {asked} cannot be read: {error}") from None


def _compiled(compiler: list[str], sources: list[str]) -> bytes:
    """Return the library's bytes. They are made outside the cache, whose disk may be full. Raises: BuildError."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as words:
        made = Path(folder) / "kernels.so"
        code = _run([*compiler, *FLAGS, *sources, "-o", str(made)], words)
        if code or not made.exists():
            words.seek(0)
            lines = words.read().decode(errors="replace").strip().splitlines()
            told = next((line for line in lines if "error" in line), lines[0] if lines else "no words")
            raise BuildError(f"{shlex.join(compiler)} failed: {told}")
        return made.read_bytes()


def _run(command: list[str], words: IO[bytes]) -> int:
    """Return a compiler's exit code, with what it says in a file: nobody waits for a pipe that its children hold."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
        )
    except OSError as error:
        raise BuildError(f"the compiler {command[0]} cannot be run: {error.strerror}") from None
    try:
        return process.wait(SECONDS_TO_COMPILE)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took more than {SECONDS_TO_COMPILE} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a compiler is several processes
            process.wait()
