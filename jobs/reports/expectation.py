"""What a forecast and a rehearsal say, for people: tokens, errors, speed, hours, money."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchloom.jobs.reports import wording

# A plan on paper makes no forecast, and does not wait for what could.
if TYPE_CHECKING:
    from batchloom.pipelines.forecasting.expected import Expected
    from batchloom.pipelines.forecasting.forecast import Forecast
    from batchloom.pipelines.forecasting.rehearsal import Rehearsal

REPLICAS = (1, 4, 16)


def forecast_words(forecast: "Forecast", rehearsal: "Rehearsal | None") -> dict[str, str]:
    """Say what the rows that were looked at make for all of them."""
    looked_at = forecast.num_looked_at
    tokens = [f"{_about(forecast.input_tokens)} in, of which the model is asked {_about(forecast.asked_tokens, False)}"]
    if forecast.truncated_tokens.total:
        tokens.append(f"{_about(forecast.truncated_tokens)} truncated")
    if rehearsal is not None and rehearsal.output_tokens.total:
        tokens.append(f"{_about(rehearsal.output_tokens)} out")
    errors = {**forecast.errors, **({} if rehearsal is None else _added(forecast, rehearsal))}
    kinds = {kind: round(rows.total) for kind, rows in errors.items()}
    told = {
        "Sample": f"{wording.plural(looked_at, 'row')} of {forecast.num_rows:,}, from all over the input",
        "Tokens": "; ".join(tokens),
        "Errors": f"about {sum(kinds.values()):,} rows ({wording.kinds(kinds)})" if kinds else f"none in {looked_at:,}",
    }
    if forecast.chosen.total < forecast.num_rows:
        told["Chosen"] = f"{_about(forecast.chosen)} rows"
    return told


def _added(forecast: "Forecast", rehearsal: "Rehearsal") -> "dict[str, Expected]":
    """Return the errors that the sample did not show: those of the model and of answers."""
    return {kind: rows for kind, rows in rehearsal.errors.items() if kind not in forecast.errors}


def rehearsal_words(forecast: "Forecast", rehearsal: "Rehearsal", price: float | None) -> dict[str, str]:
    """Say how fast a replica was, and how long all rows take; `price`: of an hour of one replica."""
    rows = wording.plural(rehearsal.num_rows, "row")
    rate = rehearsal.all_rows / rehearsal.compute_seconds(1) if rehearsal.all_rows else 0.0
    in_rate = rate * forecast.asked_tokens.total / max(forecast.chosen.total, 1)
    out_rate = rate * rehearsal.output_tokens.total / max(rehearsal.all_rows, 1)
    seconds, startup, loading = map(
        wording.duration,
        (sum(one.seconds for one in rehearsal.rounds), rehearsal.startup_seconds, rehearsal.loading_seconds),
    )
    told = {
        "Probe": f"{rows} on one replica ({rehearsal.machine}, {rehearsal.dtype}) in {seconds}, after a start of "
        f"{startup}, {loading} of it for loading the model",
        "Speed": f"{wording.rate(rate)} rows/s, {wording.rate(in_rate)} tokens/s in, {wording.rate(out_rate)} "
        f"tokens/s out; padding {rehearsal.padding:.2f} (computed over real tokens)",
    }
    if rehearsal.at_length.total:
        told["Cut"] = f"{_about(rehearsal.at_length)} answers at their maximum length"
    told["Duration"] = "\n".join(_duration(rehearsal, number, price) for number in REPLICAS)
    return told


def rehearsal_values(rehearsal: "Rehearsal", price: float | None) -> dict[str, Any]:
    """Return the same for machines; seconds and money by the number of replicas."""
    seconds = {str(number): rehearsal.total_seconds(number) for number in REPLICAS}
    money = {name: _money(rehearsal, int(name), price) for name in seconds} if price is not None else None
    return {**asdict(rehearsal), "seconds_a_row": rehearsal.seconds_a_row, "seconds": seconds, "money": money}


def _duration(rehearsal: "Rehearsal", num_replicas: int, price: float | None) -> str:
    told = f"{wording.duration(rehearsal.total_seconds(num_replicas))} with {wording.plural(num_replicas, 'replica')}"
    if (used := min(num_replicas, rehearsal.num_units)) < num_replicas:
        told += f", of which {used} have units"
    return told if price is None else f"{told}, for {_money(rehearsal, num_replicas, price):,.2f}"


def _money(rehearsal: "Rehearsal", num_replicas: int, price: float) -> float:
    return rehearsal.total_seconds(num_replicas) / 3600 * num_replicas * price


def _about(expected: "Expected", with_margin: bool = True) -> str:
    margin = f" (±{expected.margin:.1%})" if with_margin and expected.standard_error else ""
    return f"{'about ' if expected.standard_error else ''}{round(expected.total):,}{margin}"
