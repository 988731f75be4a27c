"""Format numbers, durations and totals for people. Nothing is printed here."""

from collections.abc import Mapping
from typing import Any

MAX_ITEMS = 100  # of a list in a cell: hidden states of tokens are millions


def plural(count: int, noun: str) -> str:
    """Format a count: `1 row`, `1,200 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format seconds: `0.4 s`, `38 s`, `12 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest:02d} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02d} min"


def rate(per_second: float) -> str:
    """Format a rate with about three significant digits: `0.42`, `8.3`, `5,302`."""
    return f"{per_second:.2f}" if per_second < 1 else f"{per_second:.1f}" if per_second < 100 else f"{per_second:,.0f}"


def size(num_bytes: int) -> str:
    """Format bytes in binary units: `512 B`, `1.4 MiB`."""
    value, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def metric(amount: float, unit: str) -> str:
    """Format with three significant digits and an SI prefix: `44.2 GB`, `504 kB`, `19.5 ms`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m")):
        if amount >= factor:
            return f"{amount / factor:.3g} {prefix}{unit}"
    return f"{amount * 1e6:.3g} u{unit}" if amount else f"0 {unit}"


def usage(seconds: Mapping[str, float]) -> str:
    """Format what replicas did with their time: `computed 80 %, waited for units 15 %, loaded 5 %`; nothing of none."""
    total = sum(seconds.values())
    verbs = {"computing": "computed", "waiting": "waited for units", "loading": "loaded", "overhead": "handed over"}
    shares = {verb: seconds.get(name, 0.0) / total for name, verb in verbs.items()} if total else {}
    return ", ".join(f"{verb} {share:.0%}" for verb, share in shares.items() if verb != "handed over" or share >= 0.01)


def money(amount: float) -> str:
    """Format an amount without a currency: `1,250.00`, `3.42`, `0.0042`."""
    return f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"


def kinds(errors_by_kind: Mapping[str, int]) -> str:
    """Format error counts, the most frequent first: `12 too_long, 3 null_text`."""
    ordered = sorted(errors_by_kind.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {kind}" for kind, count in ordered)


def outcome(totals: Mapping[str, int], errors_by_kind: Mapping[str, int]) -> str:
    """Format totals: `300 rows, all answered`, `300 rows, 298 answered, 2 errors (2 too_long), 700 left out`."""
    rows = plural(totals["rows"], "row")
    left_out = f", {totals['left_out']:,} left out" if totals.get("left_out") else ""
    if not totals["errors"]:
        return f"{rows}, all answered{left_out}"
    errors = f"{plural(totals['errors'], 'error')} ({kinds(errors_by_kind)})"
    return f"{rows}, {totals['ok']:,} answered, {errors}{left_out}"


def value(held: Any) -> str:
    """Format a cell on one line: numbers with four digits, lists and structs as their items, the first of very many."""
    match held:
        case None:
            return ""
        case float():
            return f"{held:.4g}"
        case list():
            return ", ".join([*map(value, held[:MAX_ITEMS]), *(["…"] if len(held) > MAX_ITEMS else [])])
        case dict():
            return ", ".join(f"{name}: {value(item)}" for name, item in held.items())
    return " ".join(str(held).split())
