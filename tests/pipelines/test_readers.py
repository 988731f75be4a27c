"""Readers open a finished output folder as it stands, by the lines in docs/data.md: each row once, nothing of ours."""

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from batchloom import pipelines
from batchloom.pipelines.fields import LEDGER_FIELDS
from tests.forms import write
from tests.pipelines.finished import answer, finish, summaries

DOCS = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text()
COLUMNS = ["id", "summary_text", *(field.name for field in LEDGER_FIELDS)]
NUM_ROWS = 45


def lines(heading: str) -> list[Any]:
    """The rows of the first table below a heading: `| reader | `line` |`."""
    table = re.search(r"\n\|.*?\n\n", DOCS[DOCS.index(f"# {heading}\n") :], re.DOTALL)
    assert table
    rows = re.findall(r"^\| ([^|]+) \| `(.+)` \|$", table[0], re.MULTILINE)
    return [pytest.param(line, id=line) for _, line in rows]


def arrow(found: Any) -> pa.Table:
    """What a line of any reader gives, as a table."""
    match type(found).__module__.partition(".")[0]:
        case "pandas":
            return pa.Table.from_pandas(found, preserve_index=False)
        case "polars":
            return found.lazy().collect().to_arrow()
        case "_duckdb" | "duckdb":
            return found.to_arrow_table()
        case "datasets":
            return found.with_format("arrow")[:]
        case "ray":
            return pa.Table.from_pandas(found.to_pandas(), preserve_index=False)
    return found


@pytest.fixture
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], pa.Table]:
    """Run a line of the documentation beside the output that it calls `out`."""

    def run(line: str, beside: Path) -> pa.Table:
        names = {
            "glob": glob,
            "pandas": pandas,
            "pyarrow": pa,
            "duckdb": duckdb,
            "polars": polars,
            "datasets": datasets,
        }
        if line.startswith("ray."):
            request.getfixturevalue("ray_cluster")
            import ray.data

            names["ray"] = ray
            line = line.replace('"out', f'"{beside}/out')  # its workers are elsewhere
        monkeypatch.chdir(beside)
        return arrow(eval(line, names))

    return run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where datasets keeps what it has read, which is not the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder beside `out`: five parts, of which the first has no errors, written as asked for."""
    folders: dict[str, Path] = {}

    def beside(**how: Any) -> Path:
        if repr(how) not in folders:
            folder = folders[repr(how)] = tmp_path_factory.mktemp("written")
            (folder / "in").mkdir()
            rows = pa.table({"id": range(NUM_ROWS), "text": [f"text {row}" for row in range(NUM_ROWS)]})
            write(rows, folder / "in", "a", ".parquet")
            assert finish(summaries([str(folder / "in")], folder / "out", **how)).totals["parts"] == 5
            assert pipelines.verify(str(folder / "out")).ok
        return folders[repr(how)]

    return beside


def check(found: pa.Table, columns: list[str]) -> None:
    """Each row once, with its own answer, and these columns alone."""
    assert sorted(found.column_names) == sorted(columns)
    rows = {row["id"]: row for row in found.to_pylist()}
    assert found.num_rows == len(rows) == NUM_ROWS
    assert {number: row["summary_text"] for number, row in rows.items()} == {
        number: answer("a.parquet", number) for number in range(NUM_ROWS)
    }
    assert {number: row["error"] and row["error"]["kind"] for number, row in rows.items()} == {
        number: None if answer("a.parquet", number) else "too_long" for number in range(NUM_ROWS)
    }


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("line", lines("What is written"))
def test_readers_open_an_output_as_it_stands(written, read, line) -> None:
    check(read(line, written()), COLUMNS)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl", ".jsonl.zst"])
@pytest.mark.parametrize("line", lines("JSON Lines"))
def test_readers_open_parts_of_json_lines(written, read, line, ending) -> None:
    if ending == ".jsonl.zst" and not line.startswith(("duckdb", "polars")):
        return  # Arrow has no zstd for JSON, and pandas and datasets want a package that is not there
    compression = {".jsonl.gz": None, ".jsonl": "none", ".jsonl.zst": "zstd"}[ending]
    check(read(line.replace(".jsonl.gz", ending), written(format="jsonl", compression=compression)), COLUMNS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder beside `out`, written as asked for: in each of four folders two parts."""
    folders: dict[str, Path] = {}

    def beside(**how: Any) -> Path:
        if repr(how) not in folders:
            folder = folders[repr(how)] = tmp_path_factory.mktemp("tree")
            for number, lang in enumerate(LANGUAGES):
                (folder / "in" / f"lang={lang}").mkdir(parents=True)
                rows = pa.table({"id": range(11 * number, 11 * number + 11), "text": ["same"] * 11})
                write(rows, folder / "in" / f"lang={lang}", "a", ".parquet")
            asked = summaries([str(folder / "in")], folder / "out", partition_by=("lang",), **how)
            assert finish(asked).totals["parts"] == 8
            assert pipelines.verify(str(folder / "out")).ok
        return folders[repr(how)]

    return beside


LANGUAGES = {"en": "en", "__HIVE_DEFAULT_PARTITION__": None, "d%2Fe%3D%20%25": "d/e= %", "日本": "日本"}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("line", lines("Folders by partition"))
def test_readers_open_an_output_in_folders(tree, read, line) -> None:
    found = read(line, tree())
    assert sorted(found.column_names) == sorted([*COLUMNS, "lang"])
    rows = {row["id"]: (row["lang"], row["summary_text"]) for row in found.to_pylist()}
    of_null = "__HIVE_DEFAULT_PARTITION__" if line.startswith("ray.") else None
    assert len(rows) == found.num_rows == 44
    assert rows == {
        11 * number + row: (lang or of_null, answer(f"lang={folder}/a.parquet", row))
        for number, (folder, lang) in enumerate(LANGUAGES.items())
        for row in range(11)
    }


def test_json_lines_in_folders_are_read_with_their_partitions(tree, monkeypatch) -> None:
    monkeypatch.chdir(tree(format="jsonl"))
    found = duckdb.sql("SELECT id, lang FROM 'out/**/*.jsonl.gz' ORDER BY id").fetchall()
    assert found == [(row, [*LANGUAGES.values()][row // 11]) for row in range(44)]


def test_a_finished_output_is_partitioned_by_any_column_as_documented(written, tmp_path, monkeypatch) -> None:
    (line,) = re.findall(r"```python\n(duckdb.sql.*COPY.*)\n```", DOCS)
    monkeypatch.chdir(written())
    eval(line.replace("'by_reason'", f"'{tmp_path}/by_reason'"), {"duckdb": duckdb})
    assert duckdb.sql(f"SELECT count(*) FROM read_parquet('{tmp_path}/by_reason/*/*.parquet')").fetchall() == [(45,)]


@pytest.mark.parametrize(
    ("form", "reading"),
    [
        (".csv", "read_csv('in/*.csv'"),
        (".jsonl.gz", "read_json('in/*.jsonl.gz'"),
        (".parquet", "read_parquet('in/**/*.parquet'"),
    ],
)
def test_every_answer_is_joined_to_its_row_of_the_input(tmp_path, monkeypatch, form, reading) -> None:
    """Files have equal ids and texts, so that nothing but `_source` tells their rows apart."""
    folders = ("lang=en/day=1", "lang=en/day=2", "lang=d%2Fe/day=1") if form == ".parquet" else ("",)
    for folder in folders:
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in ("a", "b"):
            write(pa.table({"id": range(17), "text": ["same"] * 17}), tmp_path / "in" / folder, name, form)
    manifest = finish(summaries([str(tmp_path / "in")], tmp_path / "out", ("_source",)))
    (query,) = re.findall(r"```sql\n(.*?)```", DOCS, re.DOTALL)
    assert "read_csv('in/*.csv'" in query
    monkeypatch.chdir(tmp_path)
    joined = duckdb.sql(query.replace("read_csv('in/*.csv'", reading)).to_arrow_table().to_pylist()
    num_files = 2 * len(folders)
    assert len(joined) == manifest.totals["rows"] == 17 * num_files
    assert len({(row["filename"], row["row"]) for row in joined}) == 17 * num_files
    for row in joined:
        assert row["id"] == row["row"] == row["_source"]["row"]
        assert row["summary_text"] == answer(row["filename"].removeprefix("in/"), row["row"])
