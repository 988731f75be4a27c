"""A job whose replicas wait says so, and for what."""

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from batchloom import pipelines
from batchloom.jobs.reports.figures import Figures
from batchloom.pipelines.metrics import Replicas, UnitDone
from batchloom.pipelines.running import driver
from batchloom.pipelines.watching.progress import Progress

pytestmark = pytest.mark.usefixtures("ray_cluster")

SECONDS = 4.0  # from one unit that is tokenized to the next: longer than a replica computes it on any machine


@pytest.fixture
def slow_tokenization(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let units be tokenized one after the other, from when the file that is returned is there."""
    plan, begins = driver.plan, tmp_path / "begins"

    def slowed(config: Any) -> Any:
        job = plan(config)

        class Slow(type(job.task)):
            def prepare(self, columns: Any, tokenizer: Any) -> Any:
                deadline, number = time.monotonic() + 120, 0
                while not begins.exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                while True:  # which of them it is
                    try:
                        (tmp_path / f"unit{number}").touch(exist_ok=False)
                        break
                    except FileExistsError:
                        number += 1
                time.sleep(max(0.0, begins.stat().st_mtime + SECONDS * number - time.time()))
                return super().prepare(columns, tokenizer)

        return replace(job, task=Slow(**{one.name: getattr(job.task, one.name) for one in fields(job.task)}))

    monkeypatch.setattr(driver, "plan", slowed)
    return begins


def test_a_job_that_is_starved_by_tokenization_says_so_and_accounts_for_the_time(make_job, slow_tokenization) -> None:
    progress, events = Progress(), []

    def watch(event: Any) -> None:
        progress(event)
        events.append(event)
        if isinstance(event, Replicas) and event.num_ready and not slow_tokenization.exists():
            slow_tokenization.touch()

    manifest = pipelines.run(make_job(rows_per_unit=16), watch)
    timing = manifest.timing
    units = [event for event in events if isinstance(event, UnitDone)]
    assert timing["tokenize_seconds"] == pytest.approx(sum(unit.measures["tokenize_seconds"] for unit in units))
    assert timing["tokenize_seconds"] >= SECONDS * (len(units) - 1)
    assert min(unit.measures["read_seconds"] for unit in units) > 0
    assert min(unit.measures["write_seconds"] for unit in units) > 0
    assert timing["rows_computed"] == manifest.totals["rows"]
    seconds = {name: timing[f"replicas_{name}_seconds"] for name in ("loading", "computing", "waiting", "overhead")}
    assert seconds["waiting"] >= SECONDS
    assert seconds["computing"] == pytest.approx(timing["engine_busy_seconds"])
    assert sum(seconds.values()) < timing["wall_seconds"]
    (replica,) = manifest.replicas
    assert {name: replica[name] for name in seconds} == seconds
    words = Figures.of(manifest).words()
    assert words["Hint"].startswith("starved by tokenization: replicas waited ")
    assert f"waited for units {seconds['waiting'] / sum(seconds.values()):.0%}" in words["Replicas"]
    last = [event for event in events if isinstance(event, Replicas)][-1]
    assert (last.usage.waiting, last.num_units) == (seconds["waiting"], 0)
    assert progress.hint == words["Hint"]
