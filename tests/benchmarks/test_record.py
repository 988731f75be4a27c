"""What a benchmark writes: figures with units, the machine, versions, commit and command."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks.record import RESULTS, ROOT, Figure, command, speed, told, write

ENDS = re.compile(r"^if __name__ == .__main__.:", re.MULTILINE)


def test_a_result_says_where_and_how_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/benchmarks/engine.py", "--workload", "beam", "--data", "/home/me/data"])
    figures = [
        speed("batchloom", [1.0, 3.0, 2.0], "rows/s", dtype="float32"),
        Figure(system="floor", value=4, unit="s"),
    ]
    write(tmp_path / "new", "engine-beam", "texts", {"rows": 7}, figures)
    content = (tmp_path / "new/engine-beam.json").read_text()
    assert "/home" not in content
    result = json.loads(content)
    assert result["command"] == "python -m benchmarks.engine --workload beam --data data"
    assert result["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["gpu"] is None
    assert result["workload"] == {"rows": 7}
    median = {"system": "batchloom", "what": "speed", "value": 2.0, "unit": "rows/s", "dtype": "float32"}
    assert result["figures"] == [
        {**median, "rounds": [1.0, 3.0, 2.0]},
        {"system": "floor", "what": "speed", "value": 4.0, "unit": "s"},
    ]


def test_figures_with_their_unit_in_the_name_keep_it() -> None:
    found = [(one.what, one.value, one.unit) for one in told({"resume s": 2.5, "parts": 3}, "10 units")]
    assert found == [("10 units: resume s", 2.5, "s"), ("10 units: parts", 3, "")]


def test_a_command_without_arguments_is_its_module() -> None:
    assert command(["benchmarks/metrics.py"]) == "python -m benchmarks.metrics"


def test_every_benchmark_writes_its_figures() -> None:
    programs = [path for path in (ROOT / "benchmarks").glob("*.py") if ENDS.search(path.read_text())]
    assert len(programs) > 15
    silent = {path.stem for path in programs if "record.write(" not in path.read_text()}
    assert silent == {"table", "plot"}  # which read what the others wrote


def test_every_result_has_what_a_reader_needs() -> None:
    results = {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    assert results
    keys = {"title", "command", "date", "commit", "changed", "machine", "versions", "workload", "figures"}
    assert {name: keys ^ result.keys() for name, result in results.items() if keys ^ result.keys()} == {}
    assert [name for name, result in results.items() if result["changed"] or not result["figures"]] == []
    assert [name for name in results if re.search(r'"[^"]*(?<![\w.])/\w', (RESULTS / name).read_text())] == []


def test_make_bench_runs_benchmarks_that_are_there_with_what_they_need() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    runs = [shlex.split(re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE)[1]) for name in ("BENCH", "BENCH_GPU")]
    modules = {one.split()[0] for own in runs for one in own}
    assert {"engine", "pipeline", "gpu", "shapes"} <= modules
    assert [name for name in modules if not (ROOT / f"benchmarks/{name}.py").is_file()] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {one.partition(">")[0] for one in extras["bench"]} == {"ctranslate2", "rouge-score", "batchloom[report]"}
