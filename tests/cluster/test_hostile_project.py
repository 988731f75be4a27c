"""The wheel in a project with a models.py, a pipelines/ and a jobs/ of its own: theirs are never imported, nor hidden.

They once were: Ray's workers imported the project's models.py in place of ours.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

SCRIPT = """
import os

import batchloom
from batchloom import models

assert batchloom.__file__.startswith(os.environ["PYTHONPATH"]), batchloom.__file__
manifest = batchloom.run("job.yaml")
assert manifest.totals["ok"] == 75, manifest.totals
try:
    import pipelines
except ImportError as error:
    assert "the project pipelines was imported" in str(error)
else:
    raise AssertionError("the project's own pipelines is hidden")
"""
ON_THE_CLUSTER = {"RAY_AUTH_MODE": "token"}


def test_the_wheel_installs_one_package_and_no_other_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"batchloom"}
    assert {"batchloom/py.typed", "batchloom/models/families/bart.py", "batchloom/jobs/cli/entry.py"} <= set(names)


@pytest.fixture
def started(
    site: Path, hostile: Path, checkpoint: str, corpus: Path, tmp_path: Path
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Python in the hostile project, with a job file there that writes to the test's own folder."""
    job = {
        "task": "summarization",
        "model": checkpoint,
        "input": {"paths": [str(corpus)], "keep_columns": ["id"]},
        "output": {"path": str(tmp_path / "out")},
        "generation": {"num_beams": 1, "max_length": 8, "min_length": 2},
        "engine": {"device": "cpu"},
    }
    (hostile / "job.yaml").write_text(yaml.safe_dump(job))
    (hostile / "script.py").write_text(SCRIPT)

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"PYTHONPATH": str(site)} | variables
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=hostile, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("way", ["local", "cluster", "submit", "script"])
def test_a_job_runs_in_a_project_with_modules_of_our_folders_names(
    started: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path, way: str
) -> None:
    command, variables = ["-m", "batchloom", "run", "job.yaml"], {}
    if way in ("cluster", "submit"):
        head = request.getfixturevalue("head")
        variables = {**ON_THE_CLUSTER, "RAY_AUTH_TOKEN": head.token}
    if way == "cluster":
        variables["RAY_ADDRESS"] = head.gcs
    elif way == "submit":
        command = ["-m", "batchloom", "submit", "job.yaml", "--address", head.address]
    elif way == "script":
        command = ["script.py"]
    said = started(*command, **variables)
    assert said.returncode == 0, said.stdout + said.stderr
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(75))
