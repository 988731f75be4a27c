"""Nothing but rich's own codes steers the terminal, whatever texts, names and messages hold."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchloom.jobs.cli.entry import _tell_unexpected
from batchloom.jobs.exit_codes import ExitCode
from batchloom.jobs.terminal.output import Output
from batchloom.jobs.terminal.row_table import RowTable
from batchloom.jobs.terminal.visible import VisibleConsole, json_line, visible
from batchloom.pipelines.errors import JobError

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066 \x7f\ufeff\U000e0041\udcff [red]x[/red] :smile:"
STEERING = set("\x1b\x07\x9b\u202e\u2066\x7f\ufeff\U000e0041\udcff")


def test_what_steers_becomes_an_escape_and_the_rest_stays() -> None:
    assert visible("a\x1b[31mb\u202ec\x85") == "a\\x1b[31mb\\u202ec\\x85"
    assert visible(visible(HOSTILE)) == visible(HOSTILE)
    plain = "Grüße\n\t日本語 🙂‍↔️ [red]"
    assert visible(plain) == plain


def test_json_has_the_same_values_and_steers_nothing() -> None:
    line = json_line({HOSTILE: [HOSTILE]})
    assert json.loads(line) == {HOSTILE: [HOSTILE]}
    assert not STEERING & set(line)


@pytest.mark.parametrize("width", [200, 30])
def test_columns_and_rows_steer_nothing(width: int) -> None:
    console = VisibleConsole(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    error = {"kind": "x", "message": HOSTILE}
    console.print(
        RowTable(
            [{HOSTILE: HOSTILE, "b": "1", "error": None}, {HOSTILE: None, "b": "2", "error": error}], [HOSTILE, "b"]
        )
    )
    shown = console.file.getvalue()
    assert not STEERING & set(shown)
    assert "\\x1b" in shown
    if width == 200:
        assert "[red]x[/red] :smile:" in shown
        assert len({line.rindex(cell) for line, cell in zip(shown.splitlines(), "b12", strict=True)}) == 1, "aligned"


def test_notes_errors_results_and_logs_steer_nothing_and_show_no_credentials(capsys: Any) -> None:
    hostile = f"{HOSTILE} http://user:s3cr3t@host/?sig=s3cr3t"
    for output in (Output(), Output(as_json=True)):
        output.say(hostile)
        output.pairs({hostile: hostile})
        output.note(hostile)
        output.relay(HOSTILE)
        output.error(JobError(hostile), ExitCode.FAILED)
        output.result({"value": hostile})
        with output.noting_logs():
            logging.getLogger("batchloom.pipelines.x").warning("%s is computed again", hostile)
    said = capsys.readouterr()
    assert not STEERING & set(said.out + said.err)
    assert "s3cr3t" not in said.out + said.err
    assert said.err.count("is computed again") == 2


def test_the_traceback_of_an_unexpected_error_steers_nothing_and_shows_no_credentials(capsys: Any) -> None:
    _tell_unexpected(RuntimeError, RuntimeError(f"{HOSTILE} http://user:s3cr3t@host/"), None)
    said = capsys.readouterr().err
    assert said.startswith("RuntimeError: ")
    assert not STEERING & set(said)
    assert "s3cr3t" not in said


def test_rows_of_data_are_told_as_they_are(capsys: Any) -> None:
    Output(as_json=True).result({"a": "http://u:p@h"}, rows=[{"text": "http://u:p@h"}])
    assert json.loads(capsys.readouterr().out) == {"a": "http://***@h", "rows": [{"text": "http://u:p@h"}]}


@pytest.mark.parametrize("arguments", [("show",), ("show", "--json"), ("verify",), ("status",)], ids=" ".join)
def test_a_reader_that_goes_away_is_no_failure(finished: Any, arguments: tuple[str, ...]) -> None:
    """`batchloom show out | head -1` ended with 1."""
    source, sink = os.pipe()
    os.close(source)
    command = [sys.executable, "-m", "batchloom", *arguments, str(finished.output)]
    done = subprocess.run(command, cwd=ROOT, stdout=sink, stderr=subprocess.PIPE, text=True, check=False)
    os.close(sink)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_that_has_no_umlauts_gets_escapes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "batchloom", "show", str(tmp_path / "é"), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "\\xe9 holds no batchloom output" in done.stdout
