"""README's table and the plot are those that benchmarks/results give, and nothing typed by hand."""

import json
from pathlib import Path

import pytest

from benchmarks import plot, table
from benchmarks.record import RESULTS, Figure, write

README = table.README.read_text()


def test_the_readme_has_the_table_that_the_results_give() -> None:
    rendered = table.render(RESULTS)
    assert rendered.count("](benchmarks/results/") >= 3
    assert table.with_table(README, rendered) == README, "README's table of speeds is stale: run make bench-table."


def test_the_page_of_benchmarks_has_the_agreement_that_the_results_give() -> None:
    page, rendered = table.PAGE.read_text(), table.agreement(RESULTS)
    assert rendered.count("\n|---|") == 2
    assert table.with_table(page, rendered) == page, "The table of agreement is stale: run make bench-table."


def test_the_plot_is_of_the_result() -> None:
    """vl-convert lays text out by the fonts of a machine, so bytes are not compared; each point says its numbers."""
    result = json.loads((RESULTS / "shapes.json").read_text())
    drawn = (RESULTS / "shapes.svg").read_text()
    points = plot.points(result)
    assert len(points) >= 12
    missing = [one for one in points if f"rows a second: {one['rows a second']}" not in drawn]
    assert not missing, "The plot is stale: run make bench-table."
    assert table.machine_of(result) in drawn


def test_a_table_has_our_best_of_each_dtype_and_the_ratio_to_the_better_rival(tmp_path: Path) -> None:
    figures = [
        Figure(system="batchloom", value=8.0, unit="rows/s", dtype="float32"),
        Figure(system="batchloom", value=9.0, unit="rows/s", dtype="bfloat16"),
        Figure(system="batchloom", value=8.5, unit="rows/s", dtype="bfloat16"),
        Figure(system="transformers", value=15.0, unit="rows/s", dtype="bfloat16"),
        Figure(system="transformers", value=20.0, unit="rows/s", dtype="float32"),
        Figure(system="ctranslate2", value=12.0, unit="rows/s", dtype="int8"),
        Figure(system="ctranslate2", what="speed of a core", value=99.0, unit="rows/processor s", dtype="int8"),
    ]
    write(tmp_path, "one", "short texts", {"rows": 3}, figures)
    write(tmp_path, "alone", "without a rival", {"rows": 3}, figures[:1])
    rows = [line for line in table.render(tmp_path).splitlines() if line.startswith("| [")]
    path = "benchmarks/results/one.json"
    assert rows == [
        f"| [short texts]({path}) | 8.00 (float32), 9.00 (bfloat16) | 20.0 (float32) | 12.0 (int8) | 0.40, 0.45 |"
    ]


def test_other_units_are_named_and_a_rival_that_was_not_run_too(tmp_path: Path) -> None:
    figures = [
        Figure(system="batchloom", value=3000.0, unit="tokens/s", dtype="int8"),
        Figure(system="transformers", value=2000.0, unit="tokens/s", dtype="float32"),
    ]
    write(tmp_path, "two", "pairs", {}, figures)
    (row,) = [line for line in table.render(tmp_path).splitlines() if line.startswith("| [")]
    path = "benchmarks/results/two.json"
    assert row == f"| [pairs]({path}), tokens a second | 3,000 (int8) | 2,000 (float32) | not run | 1.50 |"


def test_machines_have_tables_of_their_own(tmp_path: Path) -> None:
    figures = [Figure(system=name, value=1.0, unit="rows/s") for name in ("batchloom", "transformers")]
    for name in ("here", "there"):
        write(tmp_path, name, name, {}, figures)
    other = json.loads((tmp_path / "there.json").read_text())
    other["machine"] |= {"processor": "Another", "flags": ["amx_bf16"], "gpu": "A GPU"}
    (tmp_path / "there.json").write_text(json.dumps(other))
    rendered = table.render(tmp_path)
    assert rendered.count("| workload |") == 2
    assert "A GPU, Another (" in rendered
    assert ": amx_bf16), " in rendered


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no table to replace"):
        table.with_table("# A page\n", "| a |")
