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
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(' '.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
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
