"""What README.md shows of job files and commands is what there is."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from batchloom.jobs import spec
from batchloom.jobs.cli import app

README = (Path(__file__).resolve().parents[2] / "README.md").read_text().replace("\\\n", " ")
JOBS = [block for block in re.findall(r"```ya?ml\n(.*?)```", README, re.DOTALL) if "task:" in block]
SHELL = re.findall(r"^(?:\$ )?(batchloom [a-z][^\n#]*)", README, re.MULTILINE)
INLINE = re.findall(r"`(batchloom [a-z][^`]*)`", README)


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
