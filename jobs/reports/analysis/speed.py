"""How a job was computed: time, rates over time, seconds by stage and by replica, money. It reads a manifest."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from batchloom.jobs.reports import wording
from batchloom.jobs.reports.blocks import Bars, Block, Cell, Facts, Line, Share, Table
from batchloom.jobs.reports.figures import Figures
from batchloom.pipelines.ledger.manifest import Manifest

RATES = {"rows": "rows a second", "input_tokens": "tokens read a second", "output_tokens": "tokens written a second"}
MAX_INTERVALS = 48
STAGES = {
    "read_seconds": "read",
    "tokenize_seconds": "tokenize",
    "engine_busy_seconds": "compute",
    "write_seconds": "write",
    "assemble_seconds": "assemble",
}
USAGE = {"computing": "computing", "waiting": "waiting for units", "loading": "loading", "overhead": "handing over"}


def speed_blocks(manifest: Manifest, price_per_hour: float | None = None) -> Iterator[Block]:
    """Yield what is known of the run that finished a job. `price_per_hour` of all machines that it held."""
    figures = Figures.of(manifest)
    yield Facts({**_facts(figures), **_money(manifest, price_per_hour)})
    yield from _over_time(manifest)
    yield from _by_stage(manifest.timing)
    yield from _by_replica(manifest)


def _facts(figures: Figures) -> dict[str, Cell]:
    facts: dict[str, Cell] = {"time of the last run": wording.duration(figures.seconds)}
    if figures.startup_seconds:
        facts["of which start-up"] = wording.duration(figures.startup_seconds)
    if figures.rows_per_second is not None:
        facts["rows a second"] = wording.rate(figures.rows_per_second)
    if figures.tokens_per_second is not None:
        facts["tokens a second"] = wording.rate(figures.tokens_per_second)
    if figures.padding is not None:
        facts["padded over real tokens"] = f"{figures.padding:.3f}"
    if figures.is_resumed:
        facts["units computed by it"] = int(figures.timing["units_computed"])
        facts["units found done"] = int(figures.timing["units_resumed"])
    if hint := figures.words().get("Hint"):
        facts["what would make it faster"] = hint
    return facts


def _money(manifest: Manifest, price_per_hour: float | None) -> dict[str, Cell]:
    if price_per_hour is None:
        return {}
    price = price_per_hour * manifest.timing["wall_seconds"] / 3600
    rows = manifest.totals["rows"]
    is_whole = not manifest.timing["units_resumed"] and rows
    return {
        "price an hour": wording.money(price_per_hour),
        "price of the run": wording.money(price),
        **({"price of a million rows": wording.money(price / rows * 1e6)} if is_whole else {}),
    }


def _over_time(manifest: Manifest) -> Iterator[Block]:
    """Yield rates between the moments that the run took note of, as intervals of one length."""
    course = {name: np.asarray(values) for name, values in manifest.course.items()}
    seconds = course.get("seconds", np.zeros(0))
    if len({len(values) for values in course.values()}) != 1 or len(seconds) < 3 or (np.diff(seconds) <= 0).any():
        return
    longest = seconds[-1]
    factor, unit = (3600.0, "hours") if longest > 3 * 3600 else (60.0, "minutes") if longest > 180 else (1.0, "seconds")
    moments = np.linspace(0.0, longest, min(len(seconds) - 1, MAX_INTERVALS) + 1)
    for name, upwards in RATES.items():
        rates = np.diff(np.interp(moments, seconds, course.get(name, np.zeros(len(seconds))))) / np.diff(moments)
        if rates.any():
            points = tuple(zip((moments[1:] / factor).tolist(), rates.tolist(), strict=True))
            yield Line(f"{upwards[0].upper()}{upwards[1:]}", f"{unit} since the start", upwards, points)


def _by_stage(timing: Mapping[str, float]) -> Iterator[Block]:
    """Yield the seconds that workers spent in each stage, all workers together."""
    stages = {title: timing[name] for name, title in STAGES.items() if timing.get(name)}
    total = sum(stages.values())
    if total:
        rows = tuple((title, round(seconds, 1), Share(seconds / total)) for title, seconds in stages.items())
        note = "Of all processes together: stages run side by side."
        yield Bars(Table("Seconds by stage", ("stage", "seconds", "share"), rows, note), "seconds")


def _by_replica(manifest: Manifest) -> Iterator[Block]:
    """Yield what replicas did with their time: all together, and those that waited longest for units."""
    together = {name: manifest.timing.get(f"replicas_{name}_seconds", 0.0) for name in USAGE}
    total = sum(together.values())
    if total > 0:
        rows = tuple((USAGE[name], round(seconds, 1), Share(seconds / total)) for name, seconds in together.items())
        held = wording.plural(int(manifest.timing.get("num_replicas", 1)), "replica")
        yield Bars(Table(f"Time of {held}", ("they were", "seconds", "share"), rows), "seconds")
    if len(manifest.replicas) > 1:
        each = sorted(manifest.replicas, key=lambda one: -_seconds(one, "waiting"))
        header = ("node", "process", *(f"{verb}, seconds" for verb in USAGE.values()))
        told = tuple(_told(one) for one in each)
        yield Table("Replicas that waited longest", header, told)


def _told(replica: Mapping[str, Any]) -> tuple[Cell, ...]:
    who = (str(replica.get("node")), str(replica.get("process_id")))
    return (*who, *(round(_seconds(replica, name), 1) for name in USAGE))


def _seconds(replica: Mapping[str, Any], name: str) -> float:
    found = replica.get(name)
    return found if isinstance(found, int | float) else 0.0
