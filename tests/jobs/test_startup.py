"""The command line answers before anything heavy is loaded."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"ray", "torch", "pyarrow", "numpy", "pydantic", "fsspec", "transformers", "tokenizers"}


# Prints, when the command is over, which modules it has loaded, and its processor seconds.
PROBE = """
import atexit, sys, time
sys.argv = ["batchloom", *sys.argv[1:]]
from batchloom.jobs.cli import main
names = lambda: " ".join({name.partition(".")[0] for name in sys.modules})
atexit.register(lambda: print(names(), time.process_time(), sep="\\n", file=sys.stderr))
main()
"""


def loaded_by(*arguments: object, **environment: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """Run a command; return it, what it loaded, and its processor seconds."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    *_, names, seconds = done.stderr.splitlines()
    return done, set(names.split()), float(seconds)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"], ["--version"]])
def test_help_loads_nothing_heavy_and_is_quick(arguments: list[str]) -> None:
    """Ray and torch take seconds to import, and whatever --help imports every command pays for."""
    done, names, seconds = loaded_by(*arguments)
    assert done.returncode == 0
    by_typer = {"pydantic"} if len(arguments) > 1 else set()  # where a command is called, and pydantic is installed
    assert not (HEAVY - by_typer) & names
    assert seconds < 1.5, "0.15 s of a processor on an idle machine"


@pytest.mark.parametrize("command", ["init", "schema", "inspect", "plan", "status", "show", "report", "verify"])
def test_commands_that_need_no_ray_load_nothing_of_it_and_answer_soon(
    command: str, finished: Any, checkpoint: str
) -> None:
    """Each took 0.3 s more for pandas, which pyarrow imports at its first array."""
    given = {"init": ["summarization"], "schema": [], "inspect": [checkpoint], "plan": [finished.job]}
    done, names, seconds = loaded_by(command, *given.get(command, [finished.output]))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not {"ray", "torch", "transformers", "pandas"} & names
    assert seconds < 4, "0.3 to 0.6 s of a processor on an idle machine"


def test_pandas_is_there_for_whoever_loaded_pyarrow_before() -> None:
    code = (
        "import pyarrow, sys\n"
        "from batchloom.jobs.cli.without_pandas import keep_pandas_out\n"
        "keep_pandas_out()\n"
        "assert len(pyarrow.table({'a': [1, 2]}).to_pandas()) == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("batchloom st", {"stop", "status"}),
        ("batchloom init text-", {"text-generation", "text-classification"}),
        ("batchloom run --task zero", {"zero-shot-classification"}),
        ("batchloom plan --pr", {"--probe", "--price-per-hour"}),
    ],
)
def test_a_shell_completes_commands_options_and_tasks(line: str, expected: set[str]) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_BATCHLOOM_COMPLETE": "complete_bash"}
    done, names, _ = loaded_by(**words)
    assert done.returncode == 0
    assert set(done.stdout.split()) == expected
    assert not {"ray", "torch", "transformers", "pandas"} & names


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    done, _, _ = loaded_by(_BATCHLOOM_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert f"_BATCHLOOM_COMPLETE=complete_{shell}" in done.stdout
    assert "complete -o default" in done.stdout or shell != "bash", "job files are completed as files are"


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
