"""The command line answers before anything heavy is loaded."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"ray", "torch", "pyarrow", "numpy", "pydantic", "fsspec", "transformers", "tokenizers"}


# What a plan on paper needs of other packages.
PACKAGES = "import typer._adapters, rich.console, yaml, pyarrow.parquet, fsspec.implementations.local, tokenizers"

# Modules that take 10 ms and more to import, or come with others that do, and tell nothing that a plan says.
NEEDLESS = {
    "batchloom.jobs.api",
    "batchloom.pipelines.forecasting.forecast",
    "batchloom.pipelines.ledger.heartbeat",
    "batchloom.pipelines.replicas.probe",
    "batchloom.pipelines.running.driver",
    "batchloom.pipelines.tasks.zero_shot_classification",
    "pyarrow.acero",
    "pyarrow.compute",
    "pyarrow.dataset",
}

# Prints, when the command is over, which modules it has loaded, and its processor seconds.
PROBE = """
import atexit, sys, time
sys.argv = ["batchloom", *sys.argv[1:]]
from batchloom.jobs.cli import main
atexit.register(lambda: print(" ".join(sys.modules), time.process_time(), sep="\\n", file=sys.stderr))
main()
"""


def loaded_by(*arguments: object, **environment: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """Run a command; return it, the modules that it loaded, and its processor seconds."""
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


@pytest.mark.parametrize("is_done", [False, True])
def test_a_plan_on_paper_loads_what_it_says_and_nothing_else(is_done: bool, finished: Any, tmp_path: Path) -> None:
    """Whoever asks has the first word within half a second. A module of ours is 1 ms, pyarrow's functions 30: a plan
    had imported them to call one of them on a table without rows."""
    job = [finished.job] if is_done else [finished.job, "--set", f"output.path={tmp_path / 'fresh'}"]
    done, names, _ = loaded_by("plan", *job)
    assert done.returncode == 0, done.stderr
    assert not NEEDLESS & names


def test_a_plan_takes_little_longer_than_the_packages_that_it_needs(finished: Any) -> None:
    """0.41 s of a processor, of which 0.28 s are imports of these packages. Seconds are those of a machine and of what
    else it does, so one is compared with the other, each at its best of five: 2.2 times would be another package like
    pandas, which was there once."""
    code = f"import os, time; {PACKAGES}; print(time.process_time())"
    kept = {"PYTHONDONTWRITEBYTECODE": ""}  # compiling all of ours takes as long as all else
    alone = {**os.environ, **kept, "OPENBLAS_NUM_THREADS": "1"}

    def packages() -> float:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone)
        return float(done.stdout)

    times = [(loaded_by("plan", finished.job, **kept)[2], packages()) for _ in range(5)]
    of_plan, of_packages = (min(each) for each in zip(*times, strict=True))
    assert of_plan < 2.2 * of_packages


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
