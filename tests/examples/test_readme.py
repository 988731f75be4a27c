"""What README.md and the tour show of Python, job files and commands is what there is."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import batchloom
from batchloom.jobs import spec
from batchloom.jobs.cli import app
from batchloom.pipelines.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]
README, TOUR = ((ROOT / name).read_text().replace("\\\n", " ") for name in ("README.md", "docs/tour.md"))
JOBS = [block for block in re.findall(r"```ya?ml\n(.*?)```", README, re.DOTALL) if "task:" in block]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"^ *(?:\$ )?(batchloom [a-z][^\n#]*)", README + TOUR, re.MULTILINE)
INLINE = re.findall(r"`(batchloom [a-z][^`]*)`", README + TOUR)
WRONG_JOB = """\
task: summarization
model: m
output: {path: out}
input:
  paths: a.parquet
  text_colum: body
engine:
  max_batch_tokens: many
"""


def shown(beginning: str) -> str:
    """The README's block of an error, from its first line on."""
    indent, text = re.search(rf"^( *)({re.escape(beginning)}.*?)^ *```", README, re.DOTALL | re.MULTILINE).groups()
    return "\n".join(line.removeprefix(indent) for line in text.rstrip().splitlines())


@pytest.mark.parametrize("text", JOBS)
def test_a_job_of_the_readme_is_right(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    assert spec.load(str(tmp_path / "job.yaml")).task


@pytest.mark.parametrize("line", sorted({*SHELL, *INLINE}))
def test_a_command_of_the_readme_is_one_with_these_options(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    commands = get_command(app).commands
    assert name in commands, f"there is no batchloom {name}"
    if arguments:  # else it is only mentioned
        commands[name].make_context(name, list(arguments))


def test_the_python_of_the_readme_runs_and_its_refusal_is_what_is_said(
    tmp_path: Path,
    make_corpus: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "build/demo").mkdir(parents=True)
    make_corpus(tmp_path / "build/demo/corpus")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    example, of_api, of_engine = PYTHON
    exec(example, names)
    assert names["manifest"].totals["ok"] == 75
    Path("job.yaml").write_text(yaml.safe_dump(names["job"]))
    capsys.readouterr()
    exec(of_api, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "75"
    assert [line.partition("(")[0] for line in printed[1:]] == ["Planned", "Finished"]
    exec(of_engine, names)
    assert len(names["done"]) == 2

    with pytest.raises(OutputError) as refused:
        batchloom.run({**names["job"], "generation": {"num_beams": 1}})
    assert f"Error: {refused.value}".replace(os.getcwd(), "[...]") == shown("Error: Output [...]")


def test_a_wrong_job_is_refused_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(WRONG_JOB)
    said = CliRunner().invoke(app, ["run", "job.yaml"])
    assert said.stderr.rstrip() == shown("Error: job.yaml has 3 problems:")


def test_the_speeds_of_the_readme_are_those_of_the_log() -> None:
    log = (ROOT / "docs/log.md").read_text()
    table = README.partition("## Speed")[2].partition("## A job")[0]
    rows = [line.split("|")[2:-1] for line in table.splitlines() if line.startswith("|")][2:]
    figures = [number for row in rows for cell in row for number in re.findall(r"\d[\d,.]*", cell.partition("(")[0])]
    assert len(figures) > 12
    assert [number for number in figures if number not in log] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]
