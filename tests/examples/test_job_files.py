"""Every job file in examples/ does what it says."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from batchloom import pipelines
from batchloom.jobs import spec
from batchloom.pipelines.config import JobConfig

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SMALL = ["--set", "generation.max_new_tokens=8", "--set", "generation.min_length=2", "--set", "engine.device=cpu"]


def run_job(name: str, *options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "batchloom", "run", str(EXAMPLES / name), *options, *SMALL]
    environment = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_job_file_is_right(path: Path) -> None:
    assert spec.load(str(path)).task


def test_every_key_shows_every_key_with_its_default() -> None:
    path = EXAMPLES / "every_key.yaml"
    config = spec.load(str(path))
    assert yaml.safe_load(path.read_text()) == json.loads(json.dumps(dataclasses.asdict(config)))
    minimal = JobConfig(
        task=config.task,
        model=config.model,
        input=type(config.input)(paths=config.input.paths),
        output=type(config.output)(path=config.output.path),
    )
    assert config == minimal


def test_the_local_job_runs(checkpoint: str, tmp_path: Path, make_sentences: Callable[..., list[str]]) -> None:
    texts = make_sentences(8)
    table = pa.table({"id": texts, "text": texts, "reference": texts, "module": texts, "other": texts})
    pq.write_table(table, tmp_path / "corpus.parquet")
    output = tmp_path / "out"
    options = ["--model", checkpoint, "--input", str(tmp_path / "corpus.parquet"), "--output", str(output)]
    said = run_job("demo_by_hand.yaml", *options)
    assert said.returncode == 0, said.stderr
    assert pq.read_table(output).column_names[:4] == ["id", "reference", "module", "summary_text"]
    assert pipelines.verify(str(output)).ok


@pytest.fixture
def s3(tmp_path: Path, checkpoint: str, make_sentences: Callable[..., list[str]]) -> Iterator[dict[str, str]]:
    """An S3 server that holds what the example names; the environment variables that lead there."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    for bucket in ("models", "archive", "archive-summaries"):
        client.create_bucket(Bucket=bucket)
    for file in Path(checkpoint).iterdir():
        client.upload_file(str(file), "models", f"bart-large-cnn/{file.name}")
    texts = make_sentences(12)
    for month in ("01", "02"):
        shard = tmp_path / f"{month}.parquet"
        pq.write_table(pa.table({"id": texts, "url": texts, "body": texts}), shard)
        client.upload_file(str(shard), "archive", f"2024/{month}.parquet")
    yield variables
    server.stop()


def test_the_s3_job_runs_with_nothing_but_the_environment(s3: dict[str, str], monkeypatch: Any) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    said = run_job("summarization_s3.yaml")
    assert said.returncode == 0, said.stderr
    assert "24 rows, all answered" in said.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "batchloom", "show", str(EXAMPLES / "summarization_s3.yaml"), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert list(json.loads(shown.stdout)["rows"][0])[:3] == ["id", "url", "summary_text"]
