"""Write README's table of speeds, and that of agreement, from benchmarks/results and from nothing else.

python -m benchmarks.table
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT

README, PAGE = ROOT / "README.md", ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- from benchmarks/results, by python -m benchmarks.table -->", "<!-- end of the table -->"
OURS = "batchloom"
RIVALS = {"transformers": "transformers", "ctranslate2": "CTranslate2"}
Result = dict[str, Any]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, table in ((README, render(RESULTS)), (PAGE, agreement(RESULTS))):
        page.write_text(with_table(page.read_text(), table))
        print(f"written: {page}")


def with_table(page: str, table: str) -> str:
    """Return a page with this table in place of the one between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"The page has no table to replace: write {BEGIN} and {END}, a line each, where it shall be.")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def render(folder: Path) -> str:
    """Return a table for each machine of the results that have a speed of ours beside a rival's."""
    by_machine: dict[str, list[tuple[str, Result]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if fastest(result, OURS) and any(best(result, rival) for rival in RIVALS):
            by_machine.setdefault(machine_of(result), []).append((path.name, result))
    return "\n".join(line for machine, results in by_machine.items() for line in _table(machine, results))


def agreement(folder: Path) -> str:
    """Return what benchmarks/agreement.py found, a table a task, a column a dtype."""
    lines = []
    for path in sorted(folder.glob("agreement-*.json")):
        result = json.loads(path.read_text())
        figures = result["figures"]
        dtypes = list(dict.fromkeys(one["dtype"] for one in figures))
        values = {(one["what"], one["dtype"]): _number(one) for one in figures}
        lines += [f"{result['title'].capitalize()}; {machine_of(result)}:\n", f"| | {' | '.join(dtypes)} |"]
        lines.append("|---" * (len(dtypes) + 1) + "|")
        for what in dict.fromkeys(what for what, _ in values):
            lines.append(f"| {what} | {' | '.join(values.get((what, dtype), '') for dtype in dtypes)} |")
        lines.append("")
    return "\n".join(lines)


def _number(figure: dict[str, Any]) -> str:
    if figure["unit"] == "share":
        return f"{100 * figure['value']:.1f} %"
    return f"{figure['value']:.1f} %" if figure["unit"] == "%" else f"{figure['value']:.2g}"


def machine_of(result: Result) -> str:
    """Return what a result was measured on, in words: `AMD EPYC (family 25, model 17: avx512_bf16), 2 cores, ...`."""
    machine, versions = result["machine"], result["versions"]
    what = f"{machine['processor']} (family {machine['family']}, model {machine['model']}: {_flags(machine['flags'])})"
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    named = ("torch", "transformers", "ctranslate2", "ray")
    told = ", ".join(f"{name} {versions[name].partition('+')[0]}" for name in named if versions[name])
    return f"{gpu}{what}, {machine['cores']} cores, {told}"


def _flags(flags: list[str]) -> str:
    """Return those that matter to products: a processor with them has AVX2 and AVX-512 too."""
    kept = [flag for flag in flags if flag not in ("avx2", "avx512f")] or flags or ["no vector flags known"]
    return ", ".join(kept if any("amx" in flag for flag in flags) else [*kept, "no AMX"])


def best(result: Result, system: str) -> dict[str, Any] | None:
    """Return a system's highest speed."""
    return max(fastest(result, system), key=lambda one: one["value"], default=None)


def fastest(result: Result, system: str) -> list[dict[str, Any]]:
    """Return a system's highest speed in each dtype."""
    of_dtype: dict[str | None, dict[str, Any]] = {}
    for one in result["figures"]:
        is_speed = one["what"] == "speed" and one["system"] == system
        if is_speed and one["value"] > of_dtype.get(one.get("dtype"), {"value": 0})["value"]:
            of_dtype[one.get("dtype")] = one
    return list(of_dtype.values())


def _table(machine: str, results: list[tuple[str, Result]]) -> Iterator[str]:
    yield f"{machine}:\n"
    yield f"| workload | Batchloom | {' | '.join(RIVALS.values())} | against the better rival |"
    yield "|---|---|---|---|---|"
    for name, result in results:
        ours, rivals = fastest(result, OURS), [best(result, rival) for rival in RIVALS]
        better = max(rival["value"] for rival in rivals if rival)
        unit = "" if ours[0]["unit"] == "rows/s" else f", {ours[0]['unit'].replace('/s', ' a second')}"
        what = f"[{result['title']}](benchmarks/results/{name}){unit}"
        ratios = ", ".join(f"{one['value'] / better:.2f}" for one in ours)
        yield f"| {what} | {', '.join(map(_cell, ours))} | {' | '.join(map(_cell, rivals))} | {ratios} |"
    yield ""


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "not run"
    value = figure["value"]
    digits = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{digits} ({figure['dtype']})" if "dtype" in figure else digits


if __name__ == "__main__":
    main()
