"""The door of the package: a job from a script, as a path, a mapping or a JobConfig."""

import dataclasses
import io
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import batchloom
from batchloom.jobs.terminal.notebook import NotebookLine, is_notebook
from batchloom.pipelines.counts import UnitRecord
from batchloom.pipelines.errors import ConfigError, OutputError
from batchloom.pipelines.ledger.resume import Pending
from batchloom.pipelines.metrics import Finished, Planned, Replicas, ReplicasStarting, UnitDone
from batchloom.pipelines.watching.progress import Progress

ROOT = Path(__file__).resolve().parents[1]


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


def test_the_bytes_of_a_unit_in_a_job_file_decide_where_units_are_cut(job: dict[str, Any], tmp_path: Path) -> None:
    """The option could have been ignored by `plan` without a test that fails."""
    file = tmp_path / "job.yaml"
    job["input"]["paths"], job["output"]["path"] = [str(tmp_path / "corpus")], str(tmp_path / "out")

    def bytes_of_units() -> list[int]:
        file.write_text(yaml.safe_dump(job))
        plan = batchloom.plan(file)
        units = [unit for part in plan.parts for unit in Pending(part, ((0, part.num_rows),)).units(plan)]
        assert plan.num_units == len(units)
        pieces = [
            [plan.shards_by_name[span.shard].pieces(span.start, span.stop) for span in unit.spans] for unit in units
        ]
        return [sum(num_bytes for piece in unit for _, num_bytes in piece) for unit in pieces]

    (whole,) = bytes_of_units()
    job["input"]["max_unit_bytes"] = whole // 4
    cut = bytes_of_units()
    assert len(cut) >= 4
    assert max(cut) <= whole // 4


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


def test_a_mapping_that_lacks_keys_is_not_told_of_options_of_the_command_line() -> None:
    with pytest.raises(ConfigError) as refused:
        batchloom.JobConfig.from_dict({"task": "summarization", "input": {"paths": ["a"]}})
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "model: required and not there. Add the key.",
        "output.path: required and not there. Add the key.",
    ]


def test_what_a_job_file_cannot_say_is_refused_by_its_key(job: dict[str, Any]) -> None:
    """A set of columns was taken for the text "{'id'}", and a tuple as a key was a TypeError of json's."""
    job["input"]["keep_columns"] = {"id"}
    job["generation"] = {"num_beams": np.array([4]), ("a", 1): 3}
    job["seed"] = "0"
    with pytest.raises(ConfigError) as refused:
        batchloom.plan(job)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "seed: needs a whole number, found the text '0'.",
        "input.keep_columns: cannot be a set. Use texts, numbers, booleans, lists and mappings.",
        "generation.num_beams: cannot be a ndarray. Use texts, numbers, booleans, lists and mappings.",
    ]


def test_a_mapping_may_hold_what_programs_compute_with(job: dict[str, Any]) -> None:
    options = {"num_beams": np.int64(4), "length_penalty": np.float64(0.5), "early_stopping": np.bool_(True)}
    job["generation"] = types.MappingProxyType(options)
    job["input"]["keep_columns"] = ("id",)
    config = batchloom.JobConfig.from_dict(types.MappingProxyType(job))
    assert config.generation == {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True}
    assert type(config.generation["num_beams"]) is int
    assert config.input.paths == (str(job["input"]["paths"][0]),)


def test_a_mapping_that_holds_itself_or_bytes_that_are_no_text_is_refused(job: dict[str, Any]) -> None:
    """They were a RecursionError, and a message that quoted the whole job as JSON."""
    with pytest.raises(ConfigError, match="The job has 1 problem:\n  the job: a text is not valid Unicode"):
        batchloom.plan({**job, "output": {"path": os.fsdecode(b"/out/\xff")}})
    job["generation"] = job
    with pytest.raises(ConfigError, match="hold themselves, or are nested too deep"):
        batchloom.plan(job)


def test_a_config_made_by_hand_is_checked_as_a_mapping_is(job: dict[str, Any], tmp_path: Path) -> None:
    """A dataclass takes anything: sections that are mappings were an AttributeError, a text as paths eight paths."""
    sections = {"input": job["input"], "output": job["output"]}
    by_hand = batchloom.JobConfig(task="summarization", model=Path(job["model"]), **sections)  # type: ignore[arg-type]
    assert batchloom.plan(by_hand).num_rows == 75
    wrong = dataclasses.replace(by_hand, input={"paths": str(tmp_path), "rows_per_unit": "4"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as refused:
        batchloom.plan(wrong)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        f"input.paths: needs a list, found the text '{tmp_path}'. Write [{tmp_path}].",
        "input.rows_per_unit: needs a whole number, found the text '4'.",
    ]


def test_a_checkpoint_that_is_none_is_a_model_error(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(batchloom.ModelError, match=r"config\.json"):
        batchloom.plan({**job, "model": tmp_path})


def test_what_is_no_job_and_what_is_no_output_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found int"):
        batchloom.plan(3)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="holds no batchloom output"):
        batchloom.verify(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        batchloom.run(tmp_path / "absent.yaml")


class Frontend:
    """What IPython would display: the bundles of one handle."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], raw: bool, display_id: bool) -> "Frontend":
        assert display_id
        self.update(bundle, raw)
        return self

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def frontend(monkeypatch: pytest.MonkeyPatch) -> Frontend:
    """A notebook, as far as this process can tell."""
    frontend = Frontend()
    kernel, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    kernel.get_ipython = lambda: io.StringIO()  # type: ignore[attr-defined]  # any shell but the terminal's
    display.display = frontend.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return frontend


def unit(num_rows: int) -> UnitDone:
    record = UnitRecord(
        part="",
        ranges=((0, num_rows),),
        num_rows=num_rows,
        num_errors=0,
        num_input_tokens=9,
        num_output_tokens=1,
        num_truncated_tokens=0,
    )
    return UnitDone(record)


def test_progress_in_a_notebook_is_one_line_that_is_updated(frontend: Frontend) -> None:
    now = 0.0
    line = NotebookLine(Progress(lambda: now), lambda: now)
    line(Planned(num_shards=1, num_units=40, num_rows=400, num_units_done=1, num_rows_done=10))
    assert frontend.shown[-1]["text/plain"] == ("400 rows of 1 shard in 40 units; 10 rows in 1 unit are done already")
    line(ReplicasStarting())
    assert frontend.shown[-1]["text/plain"] == "Starting Ray and loading the model"
    for _ in range(39):
        now += 0.01
        line(unit(10))
    now = 100.0
    line(Replicas(2, 1, 4))
    assert frontend.shown[-1]["text/plain"].endswith("2 replicas, 1 pending  40/40 units, 4 in flight")
    line(Finished(None))  # type: ignore[arg-type]
    assert frontend.shown[-1]["text/plain"].startswith("400/400 rows")
    assert 'max="400" value="400"' in frontend.shown[-1]["text/html"]
    assert len(frontend.shown) < 10, "hundreds of updates a second would hold the browser up"


@pytest.mark.usefixtures("frontend")
def test_a_terminals_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_notebook()
    terminal = type("TerminalInteractiveShell", (), {})
    for shell in (terminal(), type("InteractiveShellEmbed", (terminal,), {})(), None):
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda shell=shell: shell)
        assert not is_notebook()


def finished(config: Any, watch: Callable[[Any], None], *_: Any) -> str:
    """Stands for pipelines.run: a job of which nothing is left to do."""
    watch(Planned(num_shards=1, num_units=1, num_rows=10, num_units_done=1, num_rows_done=10))
    watch(Finished(None))  # type: ignore[arg-type]
    return f"manifest of {config.task}"


@pytest.mark.parametrize(("progress", "num_shown"), [(None, 3), (True, 3), (False, 0)])
def test_a_notebook_shows_progress_unless_it_is_told_not_to(
    frontend: Frontend, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, progress: bool | None, num_shown: int
) -> None:
    monkeypatch.setattr("batchloom.pipelines.run", finished, raising=False)
    assert batchloom.run(job, progress=progress) == "manifest of summarization"
    assert len(frontend.shown) == num_shown


AT_TERMINAL = """
import sys
import batchloom
from batchloom import pipelines
from tests.test_public_api import finished

pipelines.run = finished
batchloom.run(
    {"task": "summarization", "model": "m", "input": {"paths": ["a"]}, "output": {"path": "o"}},
    on_event=lambda event: print("seen", type(event).__name__),
)
"""


@pytest.mark.parametrize("has_terminal", [("stdout", "stderr"), ("stdout",), ("stderr",), ()], ids="+".join)
def test_a_scripts_progress_goes_to_stderr_and_its_own_prints_to_stdout(
    tmp_path: Path, has_terminal: tuple[str, ...]
) -> None:
    """Of the two either may be a terminal, as in `python script.py > answers`; rich once took the prints along."""
    controller, terminal = os.openpty()
    with open(tmp_path / "stdout", "w") as stdout, open(tmp_path / "stderr", "w") as stderr:
        streams = {"stdout": stdout, "stderr": stderr} | dict.fromkeys(has_terminal, terminal)
        done = subprocess.run([sys.executable, "-c", AT_TERMINAL], cwd=ROOT, timeout=60, check=False, **streams)
    os.close(terminal)
    screen = os.read(controller, 1 << 16).decode().replace("\r\n", "\n") if has_terminal else ""
    os.close(controller)
    said = {name: (tmp_path / name).read_text() for name in streams} | dict.fromkeys(has_terminal, screen)
    assert done.returncode == 0, said
    planned = "10 rows of 1 shard in 1 unit; 10 rows in 1 unit are done already\n"
    assert (planned in said["stderr"]) == ("stderr" in has_terminal)  # without a terminal nobody asked for progress
    assert [line for line in ("seen Planned\n", "seen Finished\n") if line not in said["stdout"]] == []
    if len(has_terminal) < 2:
        assert planned not in said["stdout"]
        assert "seen" not in said["stderr"]


def test_the_version_is_told() -> None:
    told = subprocess.run([sys.executable, "-m", "batchloom", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"batchloom {batchloom.__version__}\n"
