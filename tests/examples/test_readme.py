"""What README.md and the tour show of Python, job files and commands is what there is."""

import ast
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import batchloom
from batchloom.jobs import spec
from batchloom.jobs.cli import app
from batchloom.jobs.exit_codes import ExitCode
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.tasks import TASKS

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


def job_of(example: str) -> dict[str, Any]:
    """The mapping that the example hands to `batchloom.run`."""
    calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    (call,) = (call for call in calls if ast.unparse(call.func) == "batchloom.run")
    return ast.literal_eval(call.args[0])


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
    starts: list[dict[str, Any]] = []
    start_ray = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: (starts.append(options), start_ray(**options))[1])
    (tmp_path / "build/demo").mkdir(parents=True)
    make_corpus(tmp_path / "build/demo/corpus")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    example, of_api, of_engine = PYTHON
    exec(example, names)
    assert capsys.readouterr().out.splitlines()[-1] == "75 True"
    job = job_of(example)
    Path("job.yaml").write_text(yaml.safe_dump(job))
    exec(of_api, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "75"
    assert [line.partition("(")[0] for line in printed[1:]] == ["Planned", "Finished"]
    assert len(starts) == 1, "the second run found everything done, and started nothing"
    exec(of_engine, names)
    assert len(names["done"]) == 2

    with pytest.raises(OutputError) as refused:
        batchloom.run({**job, "generation": {"num_beams": 1}})
    assert f"Error: {refused.value}".replace(os.getcwd(), "[...]") == shown("Error: Output [...]")


def test_a_wrong_job_is_refused_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(WRONG_JOB)
    said = CliRunner().invoke(app, ["run", "job.yaml"])
    assert said.stderr.rstrip() == shown("Error: job.yaml has 3 problems:")


def test_the_first_example_of_the_readme_has_eight_lines() -> None:
    assert len([line for line in PYTHON[0].splitlines() if line]) == 8


def test_the_readme_names_every_task_and_every_exit_code() -> None:
    tasks = re.search(r"^Tasks: (.*?)\. ", README, re.DOTALL | re.MULTILINE)[1]
    assert re.split(r",\s+", tasks) == list(TASKS)
    codes = re.search(r"Exit codes: (.*?)\. ", README, re.DOTALL)[1]
    assert [int(code) for code in re.findall(r"\b\d+\b", codes)] == list(ExitCode)


def test_every_command_of_the_readme_prints_json_if_asked() -> None:
    named = {shlex.split(line)[1] for line in re.findall(r"^\| `(batchloom [^`]*)`", README, re.MULTILINE)}
    commands = get_command(app).commands
    assert named == set(commands)
    without = {name for name in named if not any("--json" in option.opts for option in commands[name].params)}
    (told,) = re.findall(r"All but ((?:`\w+`[, and]*)+) take `--json`", README)
    assert without == set(re.findall(r"`(\w+)`", told))


def test_extras_targets_and_benchmarks_of_the_readme_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed, others = re.search(r"pip install '\.\[(\w+)\]' +# or (.*)", README).groups()
    assert {installed, *others.split(", ")} == extras.keys() - {"dev", "bench"}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*re.findall(r"`make ([\w-]+)`", README + TOUR)} <= {*targets}
    modules = re.findall(r"`python -m (benchmarks\.\w+)`", README)
    assert modules
    assert [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()] == []


def test_the_reading_order_names_files_that_are_there() -> None:
    order = (ROOT / "CONTRIBUTING.md").read_text().partition("**Reading order.**")[2].partition("**Style.**")[0]
    named = re.findall(r"`([\w./-]+)`", order)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_speeds_that_have_no_result_are_those_of_the_log() -> None:
    """README's table is of results (tests/benchmarks/test_table.py)."""
    log = (ROOT / "docs/log.md").read_text()
    table = (ROOT / "docs/benchmarks.md").read_text().partition("## Other machines")[2]
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
