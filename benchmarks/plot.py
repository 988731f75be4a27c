"""Draw rows a second over batch and length, from the result of benchmarks/shapes.py, as SVG.

python -m benchmarks.plot
"""

import argparse
import json
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.table import machine_of

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name: nothing is fetched
# One colour a length, told apart by who sees few colours; readable on a white page and on a dark one.
COLOURS = ["#3b7dd8", "#d9822b", "#2a9d6f", "#b5539c", "#8a8a8a"]
INK, GRID = "#7a7a7a", "#8883"
TICKS = [digit * 10**power for power in range(-1, 4) for digit in (1, 2, 5)]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import vl_convert

    result = json.loads((RESULTS / "shapes.json").read_text())
    path = RESULTS / "shapes.svg"
    path.write_text(vl_convert.vegalite_to_svg(spec(result), allowed_base_urls=[]) + "\n")
    print(f"written: {path}")


def points(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each figure: system, tokens, batch, rows a second."""
    return [{"system": one["system"], **one["at"], "rows a second": one["value"]} for one in result["figures"]]


def spec(result: dict[str, Any]) -> dict[str, Any]:
    """Return the plot in Vega-Lite: both axes by powers, as both grow by factors."""
    rows = points(result)
    lengths, batches = (sorted({row[key] for row in rows}) for key in ("tokens", "batch"))
    across, upwards = {"type": "log", "base": 2}, {"type": "log"}
    told = [machine_of(result), "full lines: Batchloom, dashed: transformers"]
    return {
        "$schema": SCHEMA,
        "width": 460,
        "height": 280,
        "padding": 6,
        "background": None,
        "title": {"text": result["title"], "subtitle": told, "anchor": "start", "offset": 12},
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 36}},
        "encoding": {
            "x": {"field": "batch", "type": "quantitative", "scale": across, "axis": {"values": batches}},
            "y": {"field": "rows a second", "type": "quantitative", "scale": upwards, "axis": {"values": TICKS}},
            "color": {
                "field": "tokens", "type": "ordinal", "title": "tokens of a text",
                "scale": {"domain": lengths, "range": COLOURS},
            },
            "strokeDash": {
                "field": "system", "type": "nominal",
                "scale": {"domain": ["batchloom", "transformers"], "range": [[1, 0], [5, 4]]},
                "legend": None,
            },
        },
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {
                "labelColor": INK, "titleColor": INK, "gridColor": GRID, "domainColor": INK, "tickColor": INK,
                "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
            },
            "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontWeight": "normal"},
            "title": {"color": INK, "subtitleColor": INK, "fontSize": 14},
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
