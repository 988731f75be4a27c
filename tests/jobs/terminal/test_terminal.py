"""What a person at a terminal sees: one live line that nothing breaks, colours only where they are wanted."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def at_terminal(command: list[str], **variables: str) -> tuple[int, str]:
    """Exit code and screen of a command that believes it has a terminal."""
    master, slave = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", **variables}
    started = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = bytearray()
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux says so when the last writer is gone
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    return started.wait(60), seen.decode(errors="replace")


@pytest.mark.parametrize("columns", ["30", "120"])
def test_a_run_at_a_terminal_of_any_width(finished: Any, columns: str) -> None:
    code, screen = at_terminal([sys.executable, "-m", "batchloom", "run", str(finished.job)], COLUMNS=columns)
    assert code == 0
    assert "Looking at the model" in screen
    words = " ".join(screen.split())  # whatever the width, no word is broken
    assert "nothing was computed" in words
    assert f"Output {finished.output}" in words


@pytest.mark.parametrize(("variables", "is_red"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_an_error_is_red_unless_no_color_is_set(tmp_path: Path, variables: dict[str, str], is_red: bool) -> None:
    code, screen = at_terminal([sys.executable, "-m", "batchloom", "show", str(tmp_path)], **variables)
    assert code == 2
    assert "holds no batchloom output" in screen
    assert ("31m" in screen) == is_red


def test_native_lines_are_caught_and_those_that_only_inform_left_out() -> None:
    """Ray's C++ side wrote into the middle of the live line, past Python and past rich; and the loss of a node was told
    by dozens of lines on retries, with the codes of their colours; a lack of memory by pages of counters."""
    script = (
        "import os, sys\n"
        "from batchloom.jobs.terminal.stray_lines import caught\n"
        "told = []\n"
        "with caught(told.append) as stderr:\n"
        "    os.write(2, b'[2026-01-02 03:04:05,678 I 12 12] logging.cc:303: Set ray log level\\n')\n"
        "    os.write(2, b'[2026-01-02 03:04:05,678 E 12 12] core_worker.cc:1: Lost\\n')\n"
        "    os.write(2, b'\\x1b[33m(raylet)\\x1b[0m A node is gone: \\n\\n    - bytes restored: 0\\n')\n"
        "    os.write(2, b'    [2026-01-02 03:04:05,678 I 12 12] (raylet) worker_pool.cc:1: Started\\n')\n"
        "    os.write(2, b'    [state-dump] DebugString() time ms: 0\\n')\n"
        "    again = ' Task Entries.look failed. There are infinite retries remaining, so the task will be retried.'\n"
        "    print('\\x1b[33m(raylet, ip=10.0.0.2)\\x1b[0m' + again, file=sys.stderr)\n"
        "    print('\\x1b[33m(raylet)\\x1b[0m The node is dead', file=sys.stderr)\n"
        "    print('    /ray/raylet(+0x4af8e3) [0x56136b4f38e3]', file=sys.stderr)\n"
        "    print('    /lib/libc.so.6(__libc_start_main+0x85) [0x7ff2f3645305]', file=sys.stderr)\n"
        "    oom = 'Task f failed due to oom. There are infinite oom retries remaining. Error: 1 worker'\n"
        "    print('\\x1b[33m(raylet)\\x1b[0m', oom, file=sys.stderr)\n"
        "    print('Eviction Stats:\\n]\\nTop 10 memory users: PID\\n7 0.49 python', file=sys.stderr)\n"
        "    print('Refer to the documentation on how to address the out of memory issue: ...', file=sys.stderr)\n"
        "    print('from Python', file=sys.stderr)\n"
        "    print('true', file=stderr)\n"
        "print('after', file=sys.stderr)\n"
        "print(told)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "true\nafter\n"
    lost = "[2026-01-02 03:04:05,678 E 12 12] core_worker.cc:1: Lost"
    memory = "(raylet) Task f failed due to oom. There are infinite oom retries remaining. Error: 1 worker"
    told = [lost, "(raylet) A node is gone: ", "(raylet) The node is dead", memory, "from Python"]
    assert done.stdout == f"{told}\n"


def test_a_child_that_keeps_stderr_open_does_not_hold_the_command_up() -> None:
    script = (
        "import subprocess, sys\n"
        "from batchloom.jobs.terminal.stray_lines import caught\n"
        "with caught(print):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL, timeout=15, check=True)
    assert done.returncode == 0
