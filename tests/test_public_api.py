"""The door of the package: a job from a script, as a path, a mapping or a JobConfig."""

import io
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

import batchloom
from batchloom.jobs.terminal.notebook import NotebookLine, is_notebook
from batchloom.jobs.terminal.progress import Progress
from batchloom.pipelines.errors import ConfigError, OutputError
from batchloom.pipelines.metrics import Finished, Planned, UnitDone


@pytest.fixture
def job(checkpoint: str, corpus: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [corpus], "keep_columns": ["id"]},
        "output": {"path": tmp_path / "out"},
        "generation": {"num_beams": 1, "max_length": 8, "min_length": 2},
        "engine": {"device": "cpu"},
    }


def test_a_job_runs_from_a_mapping_and_goes_on_from_a_file_and_a_config(
    job: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Any] = []

    def watch(event: Any) -> None:
        events.append(event)
        print("seen by the caller")

    manifest = batchloom.run(job, on_event=watch)
    assert manifest.totals["rows"] == manifest.totals["ok"] == 75
    assert isinstance(events[0], Planned)
    assert isinstance(events[-1], Finished)
    assert sum(event.record.num_rows for event in events if isinstance(event, UnitDone)) == 75
    said = capfd.readouterr()
    assert set(said.out.splitlines()) == {"seen by the caller"}
    # No terminal, so no progress unless it is asked for; Ray says where it got its log level from.
    assert not [line for line in said.err.splitlines() if "logging.cc" not in line]

    file = tmp_path / "job.yaml"
    as_text = {**job, "input": {**job["input"], "paths": [str(tmp_path / "corpus")]}}
    file.write_text(yaml.safe_dump({**as_text, "output": {"path": str(tmp_path / "out")}}))
    config = batchloom.JobConfig.from_yaml(file)
    assert config == batchloom.JobConfig.from_dict(job)
    assert batchloom.run(file, progress=True).parts == manifest.parts
    assert "75 rows" in capfd.readouterr().err
    assert not any(isinstance(event, UnitDone) for event in _events(config))  # all was done
    assert batchloom.plan(config).num_rows == 75
    for output in (tmp_path / "out", str(file), config, job):
        assert batchloom.verify(output).ok


def _events(config: batchloom.JobConfig) -> list[Any]:
    events: list[Any] = []
    batchloom.run(config, progress=False, on_event=events.append)
    return events


def test_a_mapping_is_refused_with_all_its_problems_at_once(job: dict[str, Any]) -> None:
    job["input"]["text_colum"] = job["input"].pop("keep_columns")[0]
    job["engine"]["max_batch_tokens"] = "many"
    with pytest.raises(batchloom.PipelineError) as refused:
        batchloom.run(job)
    assert isinstance(refused.value, ConfigError)
    assert [line.strip() for line in str(refused.value).splitlines()] == [
        "The job has 2 problems:",
        "input.text_colum: unknown key. Did you mean text_column?",
        "engine.max_batch_tokens: needs a whole number, found the text 'many'.",
    ]


def test_what_is_no_job_and_what_is_no_output_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found int"):
        batchloom.plan(3)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="holds no batchloom output"):
        batchloom.verify(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        batchloom.run(tmp_path / "absent.yaml")


def test_progress_in_a_notebook_is_one_line_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            assert raw
            shown.append(bundle)

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        shown.append(bundle)
        return Handle()

    assert not is_notebook()
    kernel = types.ModuleType("IPython")
    kernel.get_ipython = lambda: io.StringIO()  # type: ignore[attr-defined]  # any shell but the terminal's
    front = types.ModuleType("IPython.display")
    front.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", front)
    assert is_notebook()
    line = NotebookLine(Progress())
    line(Planned(num_shards=1, num_units=2, num_rows=20, num_units_done=1, num_rows_done=10))
    assert "10/20 rows" in shown[-1]["text/plain"]
    assert 'max="20" value="10"' in shown[-1]["text/html"]


def test_the_version_is_told() -> None:
    told = subprocess.run([sys.executable, "-m", "batchloom", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"batchloom {batchloom.__version__}\n"
