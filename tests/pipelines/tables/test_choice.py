"""Files of tables are never read as they lie, however an input names them."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig, OutputConfig
from batchloom.pipelines.errors import ConfigError, InputError
from batchloom.pipelines.planning.apart import check_in_no_table
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.tables import marks
from tests.pipelines.tables.rows import input_of, rows_of

MARKS = {"Delta": "_delta_log/00000000000000000000.json", "Iceberg": "metadata/v1.metadata.json", "Hudi": ".hoodie/x"}


@pytest.fixture(params=MARKS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def lake(tmp_path, kind) -> Path:
    """A folder with plain files and, deeper, a table."""
    for path in ("lake/plain/a.parquet", "lake/db/t/data/lang=en/b.parquet", "lake/db/t/c.parquet"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / path)
    mark = tmp_path / "lake/db/t" / MARKS[kind]
    mark.parent.mkdir()
    mark.touch()
    return tmp_path / "lake"


@pytest.mark.parametrize("pattern", ["", "db", "**/*.parquet", "*/*/*.parquet", "*/t/data/*/*.parquet", "**"])
def test_tables_in_a_folder_or_hit_by_a_glob_are_refused(lake, kind, pattern) -> None:
    with pytest.raises(
        InputError, match=rf"finds files of tables: {lake}/db/t \({kind}\).*input\.paths: \[{lake}/db/t\]"
    ):
        find_shards(input_of(lake / pattern))


@pytest.mark.parametrize(
    "pattern", ["data", "data/lang=en", "data/lang=en/b.parquet", "data/**", "*.parquet", "c.parquet"]
)
def test_files_of_a_table_are_refused_one_by_one_as_well(lake, kind, pattern) -> None:
    with pytest.raises(InputError, match=rf"(inside of the {kind} table {lake}/db/t|finds files of tables)"):
        find_shards(input_of(lake / "db/t" / pattern))


def test_links_do_not_hide_a_table(lake, kind, tmp_path) -> None:
    os.symlink(lake / "db/t/data", tmp_path / "link")
    with pytest.raises(InputError, match=rf"inside of the {kind} table"):
        find_shards(input_of(tmp_path / "link"))


@pytest.mark.parametrize("place", ["", "answers", "data/lang=en/out", "not/there/yet"])
def test_an_output_in_a_table_is_refused(lake, kind, tmp_path, place) -> None:
    """VACUUM and the removal of orphan files would take the answers with them."""
    os.symlink(lake / "db/t", tmp_path / "link")
    for table in (lake / "db/t", tmp_path / "link"):
        with pytest.raises(ConfigError, match=rf"output\.path: .* lies in the {kind} table .*Choose a folder"):
            check_in_no_table(OutputConfig(path=str(table / place)), Patience())
    check_in_no_table(OutputConfig(path=str(lake / "db/answers")), Patience())


@pytest.mark.parametrize(
    ("mark", "words"), [("_delta_log", "has no commit and no checkpoint"), (".hoodie", "is a Hudi table, which is not")]
)
def test_a_log_that_is_an_empty_folder_is_refused_with_what_to_do(tmp_path, mark, words) -> None:
    """It was said to lie inside of itself."""
    (tmp_path / mark).mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=words):
        find_shards(input_of(tmp_path))


def test_plain_files_beside_a_table_are_read(lake) -> None:
    assert rows_of(lake / "plain").num_rows == rows_of(lake / "plain/a.parquet").num_rows == 1
    assert rows_of(lake / "*/*.parquet").num_rows == 1


def test_a_table_is_read_alone_and_as_what_it_is(lake, kind) -> None:
    table = str(lake / "db/t")
    with pytest.raises(InputError, match=rf"is a {kind} table, and there are other paths beside it"):
        find_shards(InputConfig(paths=(table, str(lake / "plain"))))
    with pytest.raises(InputError, match=rf"input\.format: is jsonl, and .* is a {kind} table"):
        find_shards(input_of(table, format="jsonl"))


def test_a_hudi_table_is_refused_with_what_to_do(tmp_path) -> None:
    (tmp_path / ".hoodie").mkdir()
    (tmp_path / ".hoodie/hoodie.properties").touch()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is a Hudi table, which is not read"):
        find_shards(input_of(tmp_path))


def test_a_version_of_what_is_no_table_is_refused(lake) -> None:
    with pytest.raises(InputError, match=r"input\.version: is 3, and '.*plain' is no Delta or Iceberg table"):
        find_shards(input_of(lake / "plain", version=3))


@pytest.mark.parametrize(("kind", "library"), [("Delta", "deltalake"), ("Iceberg", "pyiceberg")])
def test_without_its_library_a_table_is_refused_with_the_command_that_installs_it(
    lake, monkeypatch, kind, library
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"is an? {kind} table, .*pip install 'batchloom\[{kind.lower()}\]'"):
        find_shards(input_of(lake / "db/t"))


def test_folders_above_are_looked_at_once_however_many_files_are_named(tmp_path, monkeypatch) -> None:
    for name in ("a/1", "a/2", "b/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / f"{name}.parquet")
    looked: list[str] = []
    monkeypatch.setattr(marks, "_info", lambda _, path: looked.append(path))
    paths = tuple(str(tmp_path / f"{name}.parquet") for name in ("a/1", "a/2", "b/3"))
    assert len(find_shards(InputConfig(paths=paths))[0]) == 3
    assert len(looked) == len(set(looked)) == 3 * (len(tmp_path.parts) + 1)


def test_folders_above_that_may_not_be_looked_at_are_no_obstacle(tmp_path, monkeypatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    info = LocalFileSystem.info

    def refusing(self: object, path: str, **options: object) -> object:
        if not os.fspath(path).startswith(str(tmp_path)):
            raise PermissionError(path)
        return info(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "info", refusing)
    assert rows_of(tmp_path).num_rows == 1
