"""Draw the plots of a report as SVG, by Vega-Lite. Colours are the page's own variables, so they follow its mode."""

from itertools import pairwise
from typing import Any

from rich.cells import cell_len, set_cell_size

from batchloom.jobs.reports.blocks import Bars, Histogram, Line
from batchloom.jobs.reports.pages import cells
from batchloom.jobs.terminal.visible import visible
from batchloom.pipelines.errors import ConfigError

WIDTH, HEIGHT = 400, 215  # of the whole; a page shows it a little smaller or larger
ROW_HEIGHT = 24  # of a bar that stands for a text
MAX_CELLS = 20  # of such a text; wide characters take two
CELL_WIDTH = 7.6  # pixels, as in a wide font: a browser's is not known
BESIDE = 12  # pixels between labels that stand beside each other
MOST_DOTS = 30  # of a line; more of them hide it
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name: nothing is fetched

Plot = Bars | Histogram | Line


class Plotter:
    """Draws plots, one after the other."""

    def __init__(self) -> None:
        """Raises: ConfigError where the plotting library is not installed."""
        try:
            import vl_convert
        except ImportError as error:
            raise ConfigError(
                "--html: plots need vl-convert-python: pip install 'batchloom[report]'. --markdown needs nothing: it "
                "has tables in their place."
            ) from error
        self._library = vl_convert

    def svg(self, plot: Plot, described: str) -> str:
        """Return a plot as an SVG element. `described`: what a person hears who does not see it."""
        drawn = self._library.vegalite_to_svg(_spec(plot), allowed_base_urls=[])
        start = drawn.index(">")
        head = f'<svg role="img" aria-label="{described}" viewBox="{_attribute(drawn[:start], "viewBox")}"'
        return f"{head}{drawn[start:]}"


def _attribute(tag: str, name: str) -> str:
    return tag.partition(f' {name}="')[2].partition('"')[0]


def _spec(plot: Plot) -> dict[str, Any]:
    match plot:
        case Bars():
            return _whole(_bars(plot))
        case Histogram():
            return _whole(_histogram(plot))
    return _whole(_line(plot))


def _bars(plot: Bars) -> dict[str, Any]:
    pairs = [(_short(visible(text)), count) for text, count in plot.lengths]
    # Two texts may look alike when they are shortened, so the rows' places are the axis, and texts its labels.
    rows = [
        {"text": text, "count": count, "place": place, "told": cells.text(count)}
        for place, (text, count) in enumerate(pairs)
    ]
    axis = {
        "title": None, "labelLimit": 0, "ticks": False, "domain": False, "labelPadding": 6,
        "labelExpr": "data('texts')[datum.value].text",
        "minExtent": 10 + CELL_WIDTH * max((cell_len(text) for text, _ in pairs), default=0),
    }  # fmt: skip
    longest = max((count for _, count in pairs), default=0) or 1
    across = {"field": "count", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1.25 * longest]}}
    upwards = {"field": "place", "type": "ordinal", "axis": axis, "scale": {"paddingInner": 0.3}}
    told = {"type": "text", "align": "left", "dx": 5, "color": "var(--ink)", "fontSize": 13}
    return {
        "height": ROW_HEIGHT * len(rows),
        "datasets": {"texts": rows},
        "data": {"name": "texts"},
        "encoding": {"x": across, "y": upwards},
        "layer": [
            {"mark": {"type": "bar", "color": "var(--fill)", "cornerRadiusEnd": 2}},
            {"mark": told, "encoding": {"text": {"field": "told"}}},
        ],
    }


def _short(text: str) -> str:
    """Return a text of at most MAX_CELLS places, of which wide characters take two."""
    text = " ".join(text.split())
    return text if cell_len(text) <= MAX_CELLS else f"{set_cell_size(text, MAX_CELLS - 1).rstrip()}…"


def _histogram(plot: Histogram) -> dict[str, Any]:
    bins = zip(pairwise(plot.edges), plot.counts, strict=True)
    rows = [{"low": low, "high": high, "count": count} for (low, high), count in bins]
    domain = [plot.edges[0], plot.edges[-1]]
    across = {"field": "low", "type": "quantitative", "bin": {"binned": True}, "axis": _number_axis(plot.unit, BESIDE)}
    bars = {
        "mark": {"type": "bar", "color": "var(--fill)", "binSpacing": 1},
        "encoding": {
            "x": {**across, "scale": {"domain": domain, "nice": False}},
            "x2": {"field": "high"},
            "y": {"field": "count", "type": "quantitative", "axis": _count_axis(plot.counted, max(plot.counts))},
        },
    }
    middle = {
        "data": {"values": [{"median": plot.median}]},
        "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [4, 3]},
        "encoding": {"x": {"field": "median", "type": "quantitative"}},
    }
    return {"height": HEIGHT - 50, "data": {"values": rows}, "layer": [bars, middle]}


def _line(plot: Line) -> dict[str, Any]:
    bands = plot.band or ((None, None),) * len(plot.points)
    rows = [{"x": x, "y": y, "low": low, "high": high} for (x, y), (low, high) in zip(plot.points, bands, strict=True)]
    across = {"field": "x", "type": "quantitative", "axis": _number_axis(plot.across, BESIDE), "scale": {"nice": False}}

    def upwards(name: str) -> dict[str, Any]:
        return {"field": name, "type": "quantitative", "axis": _number_axis(plot.upwards)}

    line = {
        "mark": {
            "type": "line",
            "color": "var(--fill)",
            "strokeWidth": 2,
            "point": {"color": "var(--fill)", "size": 14} if len(rows) <= MOST_DOTS else False,
        },
        "encoding": {"x": across, "y": upwards("y")},
    }
    area = {
        "mark": {"type": "area", "color": "var(--fill)", "opacity": 0.22},
        "encoding": {"x": across, "y": upwards("low"), "y2": {"field": "high"}},
    }
    return {"height": HEIGHT - 50, "data": {"values": rows}, "layer": [area, line] if plot.band else [line]}


def _number_axis(title: str, separation: int = 0) -> dict[str, Any]:
    """`separation`: pixels between labels that stand beside each other."""
    return {"title": title, "tickCount": 5, "labelOverlap": True, "labelSeparation": separation, "labelFlush": True}


def _count_axis(title: str, largest: float) -> dict[str, Any]:
    return {**_number_axis(title), "tickMinStep": 1, "format": ",d" if largest < 100_000 else "~s"}


def _whole(inner: dict[str, Any]) -> dict[str, Any]:
    axis = {
        **dict.fromkeys(("labelColor", "titleColor"), "var(--soft)"),
        **dict.fromkeys(("gridColor", "domainColor", "tickColor"), "var(--line)"),
        "labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal", "titlePadding": 8,
    }  # fmt: skip
    return {
        "$schema": SCHEMA,
        "width": WIDTH,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        "padding": 2,
        **inner,
        "config": {"font": "system-ui, sans-serif", "view": {"stroke": None}, "axis": axis},
    }
