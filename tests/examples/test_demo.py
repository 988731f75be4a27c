import ast
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from batchloom import pipelines

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 24


def run_demo(folder: Path, num_rows: int = NUM_ROWS) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "examples/demo.py", "--rows", str(num_rows), "--folder", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder)


Demo = tuple[Path, "subprocess.CompletedProcess[str]"]


def test_the_demo_summarizes_and_classifies_docstrings_and_says_where_they_are(demo: Demo) -> None:
    folder, said = demo
    assert said.returncode == 0, said.stderr
    assert "24 rows in " in said.stdout
    assert "Every input row is there once, and every part is as it was written." in said.stdout
    assert f"Every row: {folder}/topics/*.parquet. The report: {folder}/report.html" in said.stdout
    table = pq.read_table(folder / "topics")
    assert table.column_names[:6] == ["id", "module", "reference", "summary_text", "labels", "scores"]
    assert table.num_rows == NUM_ROWS
    assert all(len(summary.split()) > 1 for summary in table["summary_text"].to_pylist())
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert pipelines.verify(str(folder / "summaries")).ok


def test_the_tour_shows_the_commands_and_columns_of_the_demo(demo: Demo) -> None:
    folder, said = demo
    tour = (ROOT / "docs/tour.md").read_text()
    session = tour.partition("```console")[2].partition("```")[0]
    commands = re.findall(r"^\$ (batchloom .*)", session, re.MULTILINE)
    assert commands == re.findall(r"^\$ (batchloom .*)", said.stdout.replace(str(folder), "build/demo"), re.MULTILINE)
    columns = re.search(r"column_names\n(\[.*\])", tour)
    assert columns
    assert pq.read_schema(next((folder / "summaries").glob("*.parquet"))).names == ast.literal_eval(columns[1])


def test_every_docstring_is_counted_at_its_topic(demo: Demo) -> None:
    folder, said = demo
    lines = said.stdout.partition("What it is about")[2].partition("All in")[0].splitlines()[1:]
    counted = {line[:16].strip(): int(line[16:22]) for line in lines if line}
    best = [labels[0] for labels in pq.read_table(folder / "topics")["labels"].to_pylist()]
    assert counted == Counter(best)


def test_the_corpus_is_of_packages_that_the_models_never_read(demo: Demo) -> None:
    folder, _ = demo
    held_out = (ROOT / "examples/demo_models/held_out.txt").read_text().split()
    modules = pq.read_table(folder / "summaries", columns=["module"])["module"].to_pylist()
    assert {module.partition(".")[0] for module in modules} <= set(held_out)


def test_the_corpus_has_several_shards_of_several_row_groups(demo: Demo) -> None:
    folder, _ = demo
    shards = sorted((folder / "corpus").glob("*.parquet"))
    assert len(shards) == 4
    assert all(pq.read_metadata(shard).num_row_groups > 1 for shard in shards)
    assert pq.read_schema(shards[0]).names == ["id", "text", "reference", "module"]


def test_a_second_demo_finds_everything_done(demo: Demo) -> None:
    folder, _ = demo
    again = run_demo(folder)
    assert again.returncode == 0, again.stderr
    assert "were done already; nothing was computed" in again.stdout


def test_another_corpus_takes_the_old_answers_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from demo import prepare

    prepare(tmp_path, 8)
    outputs = [tmp_path / "summaries", tmp_path / "topics"]
    for output in outputs:
        output.mkdir()
    prepare(tmp_path, 8)
    assert all(output.exists() for output in outputs)
    prepare(tmp_path, 9)
    assert not any(output.exists() for output in outputs)


def test_the_demo_asks_for_the_topics_that_the_figures_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job file says them in words, as a person would; the corpus of training and evaluation has them in a table."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "examples/demo_models"))
    from demo import prepare
    from topics import TEMPLATE, TOPICS

    prepare(tmp_path, 8)
    asked = yaml.safe_load((tmp_path / "topics.yaml").read_text())["task_options"]
    assert asked == {"candidate_labels": list(TOPICS), "hypothesis_template": TEMPLATE}


@pytest.fixture
def docstrings(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[bytes]]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from docstrings import corpus

    return corpus


def test_the_corpus_is_the_same_on_every_call(docstrings: Callable[[int], list[bytes]]) -> None:
    assert docstrings(40) == docstrings(40)


def test_every_docstring_comes_once_and_has_a_body(docstrings: Callable[[int], list[bytes]]) -> None:
    rows = [row for shard in docstrings(200) for row in pq.read_table(io.BytesIO(shard)).to_pylist()]
    assert len(rows) == len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 200
    assert all(row["id"].startswith(row["module"] + ":") for row in rows)
    assert all(row["text"] and row["reference"] and "\n" not in row["reference"] for row in rows)
