"""The command line answers before anything heavy is loaded."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"ray", "torch", "pyarrow", "numpy", "pydantic", "fsspec", "transformers", "tokenizers"}


def test_help_loads_nothing_heavy_and_is_quick() -> None:
    """Ray and torch take seconds to import, and whatever --help imports every command pays for."""
    probe = (
        "import sys\n"
        "sys.argv = ['batchloom', '--help']\n"
        "from batchloom.jobs.cli import main\n"
        "import atexit\n"
        "told = lambda: print(' '.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "atexit.register(told)\n"
        "main()\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    assert not HEAVY & set(done.stderr.split())
    assert "verify" in done.stdout
    assert seconds < 5, "0.2 s on an idle machine"


def test_python_m_batchloom_is_the_command() -> None:
    command = [sys.executable, "-m", "batchloom", "run", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--keep-columns" in done.stdout


def test_a_command_ends_with_its_code_whatever_threads_are_left() -> None:
    """Threads of libraries that were there at the interpreter's end aborted it, or kept it from ending."""
    probe = (
        "import sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "sys.argv = ['batchloom', 'verify', 'nowhere']\n"
        "from batchloom.jobs.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
