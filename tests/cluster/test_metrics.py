"""What Prometheus scrapes of a job: the sums of its manifest, and whatever the dashboard asks for."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.conftest import METRICS_AT_ONCE
from tests.cluster.heads import Head
from tests.cluster.promql import expressions, labels_in, names_in
from tests.pipelines.telemetry.test_metrics_table import DASHBOARD

SECONDS = 300.0  # for a job of seconds, on a machine where others work

Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


def scraped(head: Head, output: str) -> Samples:
    """Return the samples of a job by metric: labels and value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("output") == output:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def by(samples: Samples, name: str, label: str | None = None) -> Any:
    """Return a metric's sum, or its sums by a label."""
    sums: dict[str, float] = {}
    for labels, value in samples.get(f"ray_batchloom_{name}", []):
        sums[labels[label] if label else ""] = sums.get(labels[label] if label else "", 0.0) + value
    return sums if label else sums.get("", 0.0)


def note(samples: Samples, seen: dict[str, set[str]]) -> None:
    """Add the labels of metrics."""
    for name, of_name in samples.items():
        seen.setdefault(name, set()).update(label for labels, _ in of_name for label in labels)


def wait_for_endpoint(head: Head) -> None:
    """A head is started some seconds before its agent answers."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            scraped(head, "")
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.25)
        else:
            return


@pytest.fixture
def job(tmp_path: Path, checkpoint: str, make_sentences: Any) -> str:
    """A job in which everything happens that is counted: errors, rows left out, texts cut off."""
    (tmp_path / "in").mkdir()
    texts = [*make_sentences(300), None, "zone " * 500, None]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / "in/a.parquet")
    values = {
        "task": "summarization", "model": checkpoint, "output": {"path": str(tmp_path / "out")},
        "input": {"paths": [str(tmp_path / "in")], "rows_per_unit": 20, "where": "id != 7"},
        "task_options": {"long_documents": "truncate"},
        "generation": {"num_beams": 4, "max_length": 40, "min_length": 20}, "engine": {"device": "cpu"},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "out")


def test_scraped_sums_are_the_manifests_and_no_query_of_the_dashboard_is_empty(
    head: Head, site: Path, job: str, tmp_path: Path
) -> None:
    wait_for_endpoint(head)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token, "RAY_ADDRESS": head.gcs}
    running = subprocess.Popen(
        [sys.executable, "-m", "batchloom", "run", "job.yaml"], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
        env=os.environ | token | METRICS_AT_ONCE | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    seen: dict[str, set[str]] = {}
    """Labels by metric, also of those that are gone with the processes that exported them."""
    alive: dict[str, float] = {}
    deadline = time.monotonic() + SECONDS
    while running.poll() is None:
        assert time.monotonic() < deadline
        samples = scraped(head, job)
        note(samples, seen)
        alive |= by(samples, "replicas", "state")
        time.sleep(0.25)
    assert running.stderr is not None
    assert running.returncode == 0, running.stderr.read()
    manifest = json.loads((Path(job) / "_batchloom/manifest.json").read_text())
    totals, timing = manifest["totals"], manifest["timing"]
    assert totals["errors"] == 2
    assert totals["left_out"] == 1
    assert totals["truncated_tokens"] > 0
    while by(samples := scraped(head, job), "parts_total") < totals["parts"]:  # what the driver told last
        assert time.monotonic() < deadline
        time.sleep(0.25)
    note(samples, seen)
    told = {
        "rows": by(samples, "rows_total"),
        "left_out": by(samples, "left_out_rows_total"),
        "errors": by(samples, "errors_total"),
        "input_tokens": by(samples, "input_tokens_total"),
        "output_tokens": by(samples, "output_tokens_total"),
        "truncated_tokens": by(samples, "truncated_tokens_total"),
        "parts": by(samples, "parts_total"),
    }
    assert told == {name: totals[name] for name in told}
    assert by(samples, "errors_total", "kind") == manifest["errors_by_kind"]
    assert by(samples, "units_total") == timing["units_computed"]
    assert by(samples, "prompt_tokens_total") == timing["engine_prompt_tokens"]
    assert by(samples, "padded_tokens_total") == timing["engine_padded_tokens"]
    stages = {stage: f"{stage}_seconds" for stage in ("read", "tokenize", "write", "assemble")}
    seconds = {stage: timing[name] for stage, name in {**stages, "compute": "engine_busy_seconds"}.items()}
    assert by(samples, "stage_seconds_total", "stage") == pytest.approx(seconds)
    assert alive["alive"] == 1
    for expression in expressions(json.loads(DASHBOARD.read_text())):
        for name in names_in(expression):
            assert name in seen, f"{name} is not scraped, and {expression} asks for it"
            assert labels_in(expression) <= set().union(*(seen[name] for name in names_in(expression)))
