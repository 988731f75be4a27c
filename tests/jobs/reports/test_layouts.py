"""What show and status say of an output whose parts are JSON Lines or lie in folders, and of files that a selection
leaves out."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.forms import write
from tests.pipelines.finished import finish, summaries

Run = Callable[..., Any]
LAYOUTS = [
    {},
    {"format": "jsonl"},
    {"format": "jsonl", "compression": "zstd", "partition_by": ("lang",)},
    {"partition_by": ("lang",)},
]


def open_again(output: Path) -> None:
    """Make a finished output one that is not."""
    for name in ("_SUCCESS", "_batchloom/manifest.json"):
        (output / name).unlink()
    (output / "_batchloom/columns.pq").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows in English and 10 in German. Rows 14, 21 and 28 of the English ones give errors."""
    folder = tmp_path_factory.mktemp("tree") / "in"
    for lang, num_rows in (("en", 30), ("de", 10)):
        (folder / f"lang={lang}").mkdir(parents=True)
        ids = [f"{lang}{row}" for row in range(num_rows)]
        docs = [{"kind": "ad", "n": row} if row >= 10 else None for row in range(num_rows)]
        rows = pa.table({"id": ids, "text": ids, "doc": docs, "size": pa.array(range(num_rows), pa.int64())})
        write(rows, folder / f"lang={lang}", "a", ".parquet")
    return folder


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("how", LAYOUTS)
def test_show_finds_the_same_rows_in_each_layout(batchloom: Run, tree: Path, tmp_path, how, is_finished) -> None:
    finish(summaries([str(tree)], tmp_path / "out", keep=("id", "doc", "size"), **how))
    if not is_finished:
        open_again(tmp_path / "out")

    def ids(*options: str) -> list[str]:
        (said,) = batchloom("show", tmp_path / "out", "--json", *options).json
        return sorted(row["id"] for row in said["rows"])

    errors = ["en14", "en21", "en28"]
    assert ids("--where", "id = 'en7'") == ["en7"]
    assert ids("--where", "size >= 8 and id like 'de%'") == ["de8", "de9"]
    assert ids("--where", "error.kind = 'too_long'") == errors  # a part without errors has nothing but nulls
    assert ids("--where", "error is not null and size > 20") == errors[1:]
    assert ids("--errors") == ids("--errors=too_long") == ids("--errors=no_such_kind,too_long") == errors
    assert ids("--errors", "--where", "size = 14 or size = 15") == ["en14"]
    assert ids("--errors=it's") == []
    assert len(ids("-n", "100")) == 40
    if is_finished or how.get("format") != "jsonl":  # JSON does not tell what is in an object that is null
        assert ids("--where", "doc.n > 28") == ["en29"]
    wrong = batchloom("show", tmp_path / "out", "--errors", "--where", "sizes = 7")
    assert wrong.code == 2
    assert wrong.err.startswith("Error: --where: at character 1, there is no column 'sizes'. Did you mean size?")
    assert wrong.err.splitlines()[1] == "  sizes = 7"


def test_show_reads_numbers_that_fill_64_bits_from_json_lines(batchloom: Run, tmp_path) -> None:
    """Of such an output no row was shown."""
    (tmp_path / "in").mkdir()
    large = pa.array([2**64 - 1, None, 2], pa.uint64())
    inside = pa.array([[2**64 - 1], None, [1]], pa.list_(pa.uint64()))
    write(pa.table({"id": range(3), "text": list("abc"), "u": large, "l": inside}), tmp_path / "in", "a", ".parquet")
    finish(summaries([str(tmp_path / "in")], tmp_path / "out", format="jsonl"))
    (said,) = batchloom("show", tmp_path / "out", "--json").json
    assert [row["u"] for row in said["rows"]] == large.to_pylist()
    (said,) = batchloom("show", tmp_path / "out", "--json", "--where", "u > 9223372036854775807").json
    assert [row["id"] for row in said["rows"]] == [0]


def test_status_says_the_same_rows_before_and_after_the_end(batchloom: Run, tree: Path, tmp_path) -> None:
    job = summaries([str(tree)], tmp_path / "out")
    finish(replace(job, input=replace(job.input, where="lang = 'en'")))
    (closed,), words = batchloom("status", tmp_path / "out", "--json").json, batchloom("status", tmp_path / "out").out
    assert (closed["num_rows"], closed["num_rows_done"], closed["num_rows_excluded"]) == (30, 30, 10)
    assert re.search(r"Rows +30 of 30 \(100%\); 10 more in files that their partitions leave out\n", words)
    assert json.loads((tmp_path / "out/_batchloom/manifest.json").read_text())["totals"]["left_out"] == 10
    open_again(tmp_path / "out")
    (opened,) = batchloom("status", tmp_path / "out", "--json").json
    assert {**opened, "finished": True, "seconds_since_part": 0} == {**closed, "seconds_since_part": 0}
