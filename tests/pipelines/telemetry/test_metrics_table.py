"""The dashboard, the documentation and the exporters speak of the same metrics, under names as Prometheus has them."""

import json
import re
from pathlib import Path

import pytest

from batchloom.pipelines.telemetry.metrics_table import METRICS, OF_EACH, Labels
from tests.cluster.promql import expressions, labels_in, names_in

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = ROOT / "examples/deploy/grafana-dashboard.json"
RAYS_OWN = {"NodeAddress"}  # labels that Ray adds, which queries use


@pytest.mark.parametrize("name", METRICS)
def test_names_say_whose_they_are_and_their_unit_and_counters_end_in_total(name: str) -> None:
    assert re.fullmatch(r"batchloom(_[a-z]+)+", name)
    assert METRICS[name].help.endswith(".")
    if "Seconds" in METRICS[name].help:
        assert name.endswith("_seconds_total")


def test_every_query_of_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    found = expressions(json.loads(DASHBOARD.read_text()))
    assert len(found) > 10
    for expression in found:
        asked = names_in(expression)
        assert asked
        assert asked <= {f"ray_{name}" for name in METRICS}, expression
        known = {*OF_EACH, *RAYS_OWN, *(label for name in asked for label in METRICS[name.removeprefix("ray_")].labels)}
        assert labels_in(expression) <= known, expression
    shown = {name.removeprefix("ray_") for expression in found for name in names_in(expression)}
    assert shown == set(METRICS), "what nobody sees need not be exported"


def test_every_metric_is_documented_with_its_labels() -> None:
    rows = dict(re.findall(r"^\| `(?:ray_)(batchloom_\w+)` \| ([^|]*) \|", (ROOT / "docs/deploy.md").read_text(), re.M))
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()} == {
        name: set(metric.labels) for name, metric in METRICS.items()
    }


@pytest.mark.parametrize(
    ("output", "name", "url"),
    [
        ("s3://bucket/summaries/2024/", "2024", "s3://bucket/summaries/2024"),
        ("https://me:pass@host/out", "out", "https://***@host/out"),
        ("/data/out", "out", "/data/out"),
    ],
)
def test_a_job_is_told_by_its_output_without_credentials(output: str, name: str, url: str) -> None:
    assert Labels.of(output) == Labels(name, url)


def test_what_a_query_asks_for_is_found_and_nothing_else() -> None:
    query = (
        'sum by (job_name, stage) (rate(a_total{output=~"$x", stage!="b_total"}[5m])) / ignoring(kind) '
        "group_left clamp_min(c_seconds offset 1d, 1e-9) or vector(0) > bool 2"
    )
    assert names_in(query) == {"a_total", "c_seconds"}
    assert labels_in(query) == {"job_name", "stage", "output", "kind"}


@pytest.mark.parametrize("name", ["r\u00e9sum\u00e9s & \u2603", "bytes \udce9", "half \ud800"])
def test_labels_are_ascii(name: str) -> None:
    """An output with an accent in its path ended the job, in a traceback of Ray's metrics."""
    labels = Labels.of(f"s3://bucket/{name}/")
    assert all(value.isascii() for value in labels.values().values())
    assert labels.output.startswith("s3://bucket/")
    assert labels.output.endswith(f"/{labels.job_name}")
    assert Labels.of("s3://bucket/r\u00e9sum\u00e9s").job_name == "r%C3%A9sum%C3%A9s"
