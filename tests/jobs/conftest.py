import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def batchloom() -> Callable[..., Said]:
    """The command line inside this process. An exception that is not an exit is raised, as a traceback would be."""

    def run(*arguments: object) -> Said:
        from batchloom.jobs.cli import app

        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "120"})
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


def run_command(*arguments: object) -> Said:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "batchloom", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def write_job(folder: Path, checkpoint: str, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [str(folder / "corpus")], "keep_columns": ["id"], "rows_per_unit": 10},
        "output": {"path": str(folder / "out"), "rows_per_part": 10},
        "generation": {"num_beams": 1, "max_length": 8, "min_length": 2},
        "engine": {"device": "cpu"},
    }
    for key, value in changes.items():
        values[key] = value
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def make_job(tmp_path: Path, checkpoint: str, corpus: Path) -> Callable[..., Path]:
    """A job file over the corpus of tests/conftest.py; keyword arguments replace whole sections."""
    assert corpus == tmp_path / "corpus"
    return lambda **changes: write_job(tmp_path, checkpoint, **changes)


@dataclass(frozen=True)
class Finished:
    """A job that has run to its end: 30 rows in 3 units, one of them null, one blank, one too long."""

    job: Path
    output: Path
    said: Said


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: str, make_sentences: Callable[..., list[str]]
) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    texts: list[str | None] = [*make_sentences(30)]
    texts[3], texts[14], texts[25] = None, "  ", "word " * 500
    (folder / "corpus").mkdir()
    ids = [f"<b>{i}</b>" for i in range(30)]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "corpus" / "a.parquet", row_group_size=10)
    job = write_job(folder, checkpoint)
    return Finished(job, folder / "out", run_command("run", job, "--json"))


@pytest.fixture
def unfinished(finished: Finished, tmp_path: Path) -> Path:
    """The finished output as it was one unit earlier."""
    folder = tmp_path / "unfinished"
    shutil.copytree(finished.output, folder)
    (folder / "_SUCCESS").unlink()
    (folder / "_batchloom" / "manifest.json").unlink()
    sorted(folder.glob("*.parquet"))[0].unlink()
    return folder
