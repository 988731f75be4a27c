"""Rows are chosen as they are read: of files of every form, by columns of any place, and none is lost by damage."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from batchloom.pipelines.columns.choose import choose_columns
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.planning.limit import selected
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.planning.units import Size, Unit, parts_of, units_of
from batchloom.pipelines.selection.sample import sampled
from batchloom.pipelines.selection.selection import Selection
from batchloom.pipelines.stages.choose import Choose
from batchloom.pipelines.stages.read import Read, stretches
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.stages.work import Work
from tests.conftest import sentences
from tests.forms import FORMS, write
from tests.pipelines.columns.test_choose import TASK

ALL = Size(10**9, 10**9)


def works(folder: Path, rows_per_unit: int = 10, most: Size | None = None, **settings: Any) -> list[Work]:
    """What is read of a folder by a job that has these settings of its input."""
    config = InputConfig(paths=(str(folder),), **settings)
    selection = Selection.of(config)
    found, schemas = find_shards(config)
    schema, _ = choose_columns(config, TASK, found, schemas, selection)
    shards = {shard.name: shard for shard in selected(found, selection)}

    def reader(names: Iterable[str]) -> Reader:
        own = pa.schema([schema.field(name) for name in dict.fromkeys(names)])
        return Reader(own, {}, str(folder), format=found[0].format)

    read = Read(reader(["text", *selection.columns]), Choose(reader(selection.columns), selection), most)
    size = Size(rows_per_unit, 10**9)
    parts = list(parts_of(shards.values(), ALL))
    units = [unit for part in parts for unit in units_of(part, [(0, part.num_rows)], shards, size)]
    made: list[Work] = []
    for stretch in stretches(units, shards, 4):
        made += map(Work.from_batch, read(pa.table({"stretch": [stretch.to_json()]})))
    return made


def texts(made: Iterable[Work]) -> list[str]:
    return [text for work in made for text in work.rows["text"].to_pylist()]


def places(made: Iterable[Work]) -> list[tuple[str, int]]:
    return [work.unit.row(row) for work in made for row in range(work.rows.num_rows)]


@pytest.fixture(params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of 40 and 9 rows, in any form."""
    monkeypatch.setattr("batchloom.pipelines.formats.scan.ROW_GROUP_BYTES", 1500)
    folder = tmp_path / "in"
    for lang, first, num_rows in (("de", 0, 40), ("en", 40, 9)):
        (folder / f"lang={lang}").mkdir(parents=True)
        table = pa.table({"id": range(first, first + num_rows), "text": sentences(num_rows, seed=first)})
        write(table, folder / f"lang={lang}", "a", request.param)
    return folder


def test_an_expression_chooses_rows_of_every_form(folder) -> None:
    every = [*sentences(40), *sentences(9, seed=40)]
    made = works(folder, where="length(text) > 100 and (lang = 'en' or text like 'A%')")
    expected = [text for row, text in enumerate(every) if len(text) > 100 and (row >= 40 or text.startswith("A"))]
    assert texts(made) == expected
    assert 0 < len(expected) < 49
    assert sum(work.unit.num_rows for work in made) == 49
    by_place = {("lang=de/a", row): text for row, text in enumerate(every[:40])}
    by_place |= {("lang=en/a", row): text for row, text in enumerate(every[40:])}
    assert [by_place[name.partition(".")[0], row] for name, row in places(made)] == expected


def test_a_sample_is_the_same_in_units_of_any_size(folder) -> None:
    whole = works(folder, rows_per_unit=1000, sample=0.3)
    small = works(folder, rows_per_unit=3, sample=0.3)
    names = sorted({span.shard for work in whole for span in work.unit.spans})
    assert places(whole) == places(small)
    of_files = [sampled(name, 0, num, 0.3) for name, num in zip(names, (40, 9), strict=True)]
    assert places(whole) == [(n, row) for n, flags in zip(names, of_files, strict=True) for row in flags.nonzero()[0]]
    both = works(folder, rows_per_unit=7, sample=0.3, where="length(text) > 100")
    assert texts(both) == [text for text in texts(whole) if len(text) > 100]


def test_files_are_not_opened_that_their_partitions_leave_out(folder) -> None:
    made = works(folder, where="lang = 'en'")
    assert {span.shard.split("/")[0] for work in made for span in work.unit.spans} == {"lang=en"}
    assert texts(made) == sentences(9, seed=40)


def test_a_tables_partitions_choose_by_their_types_among_its_live_rows(tmp_path) -> None:
    table = pa.table({"text": list("abcdef"), "n": [2, 10, 10, 10, 2, 10]})
    write_deltalake(tmp_path, table, partition_by=["n"])
    DeltaTable(tmp_path).delete("text = 'c'")
    assert sorted(texts(works(tmp_path, where="n > 3 and text <> 'd'"))) == ["b", "f"]


def test_columns_inside_of_structs_and_others_of_any_type_choose(tmp_path) -> None:
    rows = [{"text": f"t{n}", "doc": {"lang": "en" if n % 2 else "de", "n": n}, "tags": ["a"] * n} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    assert texts(works(tmp_path, where="doc.lang = 'en' and doc.n > 1 and length(tags) < 5")) == ["t3"]
    with pytest.raises(ConfigError, match=r"at character 1, there is no column 'doc\.language'") as refused:
        works(tmp_path, where="doc.language = 'en'")
    assert "There are: text, doc, tags" in str(refused.value)


def test_a_column_that_some_files_lack_is_null_there(tmp_path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["c"]}), tmp_path / "b.parquet")
    assert texts(works(tmp_path, where="n < 4")) == ["a"]
    assert texts(works(tmp_path, where="n is null")) == ["c"]


def test_a_record_that_cannot_be_read_is_an_error_row_and_is_not_left_out(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x", "n": 1}\n{"te\n{"text": "y", "n": 9}\n')
    (work,) = works(tmp_path, where="n > 5")
    assert work.rows["text"].to_pylist() == [None, "y"]
    assert [error and error["kind"] for error in work.rows["error"].to_pylist()] == ["damaged_input", None]
    assert places([work]) == [("a.jsonl", 1), ("a.jsonl", 2)]
    left_out = works(tmp_path, sample=1e-9)
    assert [work.rows.num_rows for work in left_out] == [0]  # a sample needs no value


def test_damage_of_other_columns_does_not_choose(tmp_path) -> None:
    """Parquet's columns lie apart: the expression's are read where the text's are damaged."""
    rows = {"text": [f"text {n} " * 50 for n in range(100)], "n": list(range(100))}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(rows), path, write_page_checksum=True, use_dictionary=False)
    content = bytearray(path.read_bytes())
    end = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    content[end - 100 : end] = bytes(100)  # of the first column's page
    path.write_bytes(content)
    (work,) = works(tmp_path, rows_per_unit=1000, where="n >= 97")
    assert [row for _, row in places([work])] == [97, 98, 99]
    assert {error["kind"] for error in work.rows["error"].to_pylist()} == {"damaged_input"}
    assert len(places(works(tmp_path, rows_per_unit=1000, where="n >= 97 or length(text) > 0"))) == 100


def test_a_text_that_is_no_utf8_is_an_error_where_the_expression_asks_for_it(tmp_path) -> None:
    title = pa.array([b"a", b"\xff", b"b"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": ["x", "y", "z"], "title": title}), tmp_path / "a.parquet")
    (work,) = works(tmp_path, where="title = 'b'")
    assert work.rows["text"].to_pylist() == ["y", "z"]
    error, nothing = work.rows["error"].to_pylist()
    assert (error["kind"], nothing) == ("not_utf8", None)
    assert "'title'" in error["message"]


def test_units_of_few_chosen_rows_are_joined_in_the_order_of_their_part(tmp_path) -> None:
    write(pa.table({"text": sentences(400)}), tmp_path, "a", ".parquet")
    apart = works(tmp_path, rows_per_unit=10, sample=0.2)
    together = works(tmp_path, rows_per_unit=10, sample=0.2, most=Size(10, 10**6))
    assert places(together) == places(apart)
    assert len(together) < len(apart) / 2
    ranges = [work.unit.ranges for work in together]
    assert all(len(own) == 1 for own in ranges)
    assert [start for ((start, _),) in ranges] == [0, *(stop for ((_, stop),) in ranges[:-1])]
    assert ranges[-1][0][1] == 400
    for work in together:
        assert work.unit.chosen is not None
        assert work.rows.num_rows == work.unit.chosen.num_chosen <= 10
        assert sum(span.num_rows for span in work.unit.spans) == work.unit.num_rows


def test_a_unit_without_a_chosen_row_goes_on_without_rows(tmp_path) -> None:
    write(pa.table({"text": ["a", "b"]}), tmp_path, "a", ".parquet")
    (work,) = works(tmp_path, where="text = 'c'")
    assert work.failure is None
    assert (work.rows.num_rows, work.unit.num_rows) == (0, 2)
    assert isinstance(work.unit, Unit)
