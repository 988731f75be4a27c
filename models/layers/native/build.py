"""Compiles the kernels into a shared library, once a machine. It knows no tensor.

Replicas are many processes that start at once, on nodes with and without a compiler. So the library is a file of the
cache, named by what it is made of; one process compiles it while others wait, and it appears under its name whole. It
needs nothing of torch's headers, so it takes seconds, and outlives a new torch.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
# All processors that are let in run the same instructions, so that they round alike: no -march=native.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-w"),
    *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512bf16"),
)
FEATURES = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})
"""What the processor must have, in the words of /proc/cpuinfo. What multiplies bfloat16 asks for avx512_bf16, too."""
SECONDS_TO_COMPILE = 300


class BuildError(Exception):
    """There is no library, and why."""


def library_file(cache: Path) -> Path:
    """Return the compiled library, made in `cache` where it is not there yet. Raises: BuildError, OSError."""
    names = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    made_of = [*FLAGS, platform.machine(), *platform.libc_ver(), *(path.read_text() for path in names)]
    path = cache / f"kernels-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (g++)")
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _wait_for_others(path, stack)
        if not path.exists():
            _compile(compiler, [str(one) for one in names if one.suffix == ".cpp"], path)
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


def _compile(compiler: str, sources: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [*shlex.split(compiler), *FLAGS, *sources, "-o", str(made)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"{compiler} took more than {SECONDS_TO_COMPILE} s") from None
        if done.returncode:
            raise BuildError(f"{compiler} failed: {(done.stderr.strip() or 'no words').splitlines()[0]}")
        os.replace(made, path)
