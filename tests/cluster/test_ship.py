"""`batchloom submit --ship` onto a head whose Python has every package but batchloom."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.utils import parse_wheel_filename

from batchloom import pipelines
from batchloom.jobs.remote import shipping
from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tables import choice
from tests.cluster.heads import Head, started

ROOT = Path(__file__).resolve().parents[2]
NOTHING_ELSE = {"PYTHONPATH": ""}


def test_a_wheel_has_all_modules_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shipping.write_wheel(tmp_path / name)
    (first,), (second,) = ((tmp_path / name).glob("*.whl") for name in ("a", "b"))
    _, found, build, _ = parse_wheel_filename(first.name)
    assert str(found) == version("batchloom")
    assert build
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        packed = {name for name in wheel.namelist() if name.endswith(".py")}
    ours = {
        f"batchloom/{path.relative_to(ROOT).as_posix()}"
        for room in ("models", "pipelines", "jobs")
        for path in (ROOT / room).rglob("*.py")
    }
    assert packed == {*ours, "batchloom/__init__.py", "batchloom/__main__.py"}


def test_other_code_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its version alone, it was not sent: Ray keeps a file of that name, and ran the code of before."""
    before = shipping.write_wheel(tmp_path)
    monkeypatch.setattr(shipping, "_modules", lambda: iter([("batchloom/__init__.py", b"changed = True")]))
    assert shipping.write_wheel(tmp_path).name != before.name


def test_requirements_have_the_versions_of_here_and_the_packages_of_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    named = dict(line.split("==") for line in shipping.requirements(["s3://bucket/in", "/local", "memory://x"]))
    assert named["pyarrow"] == version("pyarrow")
    assert named["s3fs"] == version("s3fs")
    assert not {"ray", "gcsfs", "moto"} & set(named)
    assert "+" not in named["torch"]
    monkeypatch.setitem(shipping.OF_PROTOCOLS, "gs", "no-such-package")
    with pytest.raises(ConfigError, match=r"no-such-package is not installed here. Install it: pip install no-such"):
        shipping.requirements(["gs://bucket/in"])


@pytest.mark.parametrize(
    ("mark", "library"),
    [("_delta_log/00000000000000000000.json", "deltalake"), ("metadata/v1.metadata.json", "pyiceberg"),
     ("part-0.parquet", None)],
)  # fmt: skip
def test_what_reads_a_table_is_sent_along(
    mark: str, library: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes had none of it, and the job failed there."""
    (tmp_path / "table" / mark).parent.mkdir(parents=True)
    (tmp_path / "table" / mark).touch()
    kinds = choice.kinds_of_tables(InputConfig(paths=(str(tmp_path / "table"),)), Patience(seconds=1))
    sent = {line.partition("==")[0]: line for line in shipping.requirements([], kinds)}
    assert {"deltalake", "pyiceberg"} & set(sent) == ({library} if library else set())
    if library:
        assert sent[library] == f"{library}=={version(library)}"
        for kind in kinds:
            monkeypatch.setitem(shipping.OF_TABLES, kind, "no-such-package")
        with pytest.raises(ConfigError, match="no-such-package is not installed here"):
            shipping.requirements([], kinds)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python that has the packages of this one, but for batchloom."""
    venv.create(tmp_path / "bare", with_pip=True)
    (site,) = (tmp_path / "bare/lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    python = tmp_path / "bare/bin/python"
    found = subprocess.run(
        [python, "-c", "import batchloom"],
        cwd=tmp_path,
        env=os.environ | NOTHING_ELSE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'batchloom'" in found.stderr
    return python


@pytest.fixture
def bare_head(bare: Path, tmp_path: Path) -> Iterator[Head]:
    (tmp_path / "elsewhere").mkdir()
    with started(bare, tmp_path / "elsewhere", NOTHING_ELSE) as head:
        yield head


@pytest.mark.slow
def test_shipped_code_runs_on_nodes_without_batchloom(
    bare_head: Head, tmp_path: Path, checkpoint: str, corpus: Path
) -> None:
    job = {
        "task": "summarization", "model": checkpoint, "output": {"path": str(tmp_path / "out")},
        "input": {"paths": [f"{corpus}/*.parquet"], "keep_columns": ["id"]},
        "generation": {"num_beams": 1, "max_length": 8, "min_length": 2}, "engine": {"device": "cpu"},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": bare_head.token, "LOOM_PASSED": "s3cret"}

    def submit(*options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "batchloom", "submit", "job.yaml", "--address", bare_head.address, *options],
            cwd=tmp_path, env=os.environ | token, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip

    without = submit()
    assert without.returncode == 1
    assert "No module named batchloom" in without.stderr
    assert "The cluster's nodes have no batchloom: submit with --ship" in without.stderr
    said = submit("--ship", "--env", "LOOM_PASSED", "--driver-cpus", "0.5")
    assert said.returncode == 0, said.stderr
    assert "75 rows, all answered" in said.stderr
    assert "s3cret" not in said.stdout + said.stderr
    assert pipelines.verify(str(tmp_path / "out")).ok
