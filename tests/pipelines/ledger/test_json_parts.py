"""A part of JSON Lines is as trustworthy as one of Parquet, by the seal beside it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger.part_files import SEALS, PartFile, seal_name
from batchloom.pipelines.ledger.parts import is_part_name
from batchloom.pipelines.ledger.resume import rows_with_errors
from batchloom.pipelines.ledger.sealed import Sealed, sealed
from batchloom.pipelines.planning.source import Source
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.selection.mask import Mask
from batchloom.pipelines.stages.assemble import Assemble, Order, spread
from batchloom.pipelines.stores.storage import Store
from tests.pipelines.ledger.conftest import ANSWERS, answers_of

NOT_WHOLE = "its footer|its bytes are not the ones that|its seal|is the seal of other bytes|not readable as Parquet"


@pytest.fixture(params=["none", "gzip", "zstd"])
def lines(request: pytest.FixtureRequest, assemble: Assemble) -> Assemble:
    """Writes parts of JSON Lines."""
    return replace(assemble, output=OutputConfig(path="", format="jsonl", compression=request.param), layout="f" * 16)


@pytest.fixture
def put(lines: Assemble, source: Source) -> Callable[..., PartRecord]:
    def write(part: Part, errors: int = 0) -> PartRecord:
        (span,) = part.spans
        return lines.put(part, {source.name: source}, [answers_of(range(span.start, span.stop), errors)], {"empty": 1})

    return write


@pytest.fixture
def store(lines: Assemble) -> Store:
    """The output as a run that comes later finds it."""
    return Store(lines.store.url)


def test_what_was_written_is_read_back(put, planned, store) -> None:
    record = put(planned[0], errors=2)
    file = PartFile.of(store, record.part)
    whole = file.whole()
    assert whole.footer.record == record
    assert whole.footer == file.footer(record.bytes)
    assert whole.table(ANSWERS) == file.columns(ANSWERS) == answers_of(range(10), errors=2)
    assert (record.num_rows, record.errors_by_kind, record.degenerate) == (10, {"null_text": 2}, {"empty": 1})
    assert is_part_name(record.part)
    assert file.first_rows(3).to_pylist() == [
        {"id": row, **answer} for row, answer in enumerate(answers_of(range(10), errors=2).to_pylist()[:3])
    ]
    assert rows_with_errors(store, [record], frozenset()) == [((0, 2),)]


def test_lines_are_json_with_all_columns_and_the_same_bytes_each_time(put, planned, store, tmp_path) -> None:
    record = put(planned[0], errors=1)
    first = (tmp_path / "out" / record.part).read_bytes()
    assert put(planned[0], errors=1) == record
    assert (tmp_path / "out" / record.part).read_bytes() == first
    text = b"".join(PartFile.of(store, record.part).whole().blocks())
    rows = [json.loads(line) for line in text.decode().splitlines()]
    assert [row["id"] for row in rows] == list(range(10))
    assert all(list(row) == ["id", *ANSWERS.names] for row in rows)


def test_no_byte_of_a_part_or_its_seal_can_change_unseen(put, planned, store, tmp_path) -> None:
    record = put(planned[0], errors=2)
    for name in (record.part, seal_name(record.part, record.sha256)):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        for place in range(len(content)):
            harmed = bytearray(content)
            harmed[place] ^= 1 << place % 8
            path.write_bytes(harmed)
            with pytest.raises(ValueError, match=NOT_WHOLE):
                PartFile.of(store, record.part).whole()
        for stop in (0, 3, len(content) // 2, -1):
            path.write_bytes(content[:stop])
            with pytest.raises(ValueError, match=NOT_WHOLE):
                PartFile.of(store, record.part).whole()
        path.write_bytes(content)
    assert PartFile.of(store, record.part).whole().footer.record == record


def test_a_part_without_a_seal_is_not_whole(put, planned, store, tmp_path) -> None:
    record = put(planned[0])
    (tmp_path / "out" / seal_name(record.part, record.sha256)).unlink()
    with pytest.raises(ValueError, match=f"there is no {SEALS}"):
        PartFile.of(store, record.part).whole()


def test_a_part_under_another_name_is_not_whole(put, planned, store, tmp_path) -> None:
    """Also under that of another compression, whose seal is in the same place."""
    one, other = (put(part) for part in planned[:2])
    content = (tmp_path / "out" / one.part).read_bytes()
    (tmp_path / "out" / other.part).write_bytes(content)
    with pytest.raises(ValueError, match=NOT_WHOLE):
        PartFile.of(store, other.part).whole()
    for name in (one.part.partition(".jsonl")[0] + end for end in (".jsonl", ".jsonl.gz", ".jsonl.zst")):
        if name != one.part:
            (tmp_path / "out" / name).write_bytes(content)
            with pytest.raises((ValueError, OSError)):
                PartFile.of(store, name).whole()


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other bytes": lambda account: account.update(sha256="0" * 64),
    "another size": lambda account: account.update(bytes=1),
    "another name": lambda account: account.update(ending=".jsonl.bz2"),
    "a partition": lambda account: account.update(partition_by=["id"]),
    "other rows": lambda account: account["spans"][0].__setitem__(slice(2, 4), [10, 20]),
    "another shard": lambda account: account["spans"][0].__setitem__(0, "b.parquet"),
    "another count": lambda account: account["counts"].update(num_rows=9),
    "no spans": lambda account: account.update(spans=[]),
    "no counts": lambda account: account.pop("counts") and None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_seal_that_somebody_else_made_is_held_against_the_part(put, planned, store, tmp_path, change) -> None:
    record = put(planned[0])
    path = tmp_path / "out" / seal_name(record.part, record.sha256)
    account = dict(Sealed.of(path.read_bytes()).footer)
    change(account)
    path.write_bytes(sealed(pa.table({}), account))
    with pytest.raises(ValueError, match=r"its seal|by its seal|is the seal of other bytes"):
        PartFile.of(store, record.part).whole()


def test_a_part_that_is_replaced_is_the_old_or_the_new_one_at_any_moment(put, planned, store, monkeypatch) -> None:
    old = put(planned[0], errors=3)
    writing = Store.put

    def killed_before_the_part(self: Store, name: str, content: bytes) -> Any:
        if name.startswith("part-"):
            raise KeyboardInterrupt
        return writing(self, name, content)

    monkeypatch.setattr(Store, "put", killed_before_the_part)
    with pytest.raises(KeyboardInterrupt):
        put(planned[0])
    assert PartFile.of(store, old.part).whole().footer.record == old
    monkeypatch.setattr(Store, "put", writing)
    new = put(planned[0])
    assert new.part == old.part
    assert PartFile.of(store, new.part).whole().footer.record == new


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_part_is_written_in_another_format_from_itself(lines, assemble, source, planned, tmp_path, form) -> None:
    """And the part that it was goes, with its seal, so that readers see its rows once."""
    before, after = (lines, assemble) if form == "parquet" else (assemble, lines)
    rows = answers_of(range(10), errors=2)
    old = before.put(planned[0], {source.name: source}, [rows], {"empty": 2})
    new = after(Order(planned[0], {source.name: source}, (), old))
    assert PartFile.of(after.store, new.part).whole().table(ANSWERS) == rows
    assert (new.num_rows, new.errors_by_kind, new.degenerate) == (10, {"null_text": 2}, {"empty": 2})
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == [new.part]
    seals = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / SEALS).rglob("*.pq")}
    assert seals == (set() if form == "parquet" else {seal_name(new.part, new.sha256)})
    assert after(Order(planned[0], {source.name: source}, (), old)) == new, (
        "an attempt that was lost after it had ended"
    )
    if form == "parquet":
        assert pq.read_table(tmp_path / "out" / new.part).select(ANSWERS.names) == rows


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_rows_that_are_not_chosen_stay_known_in_another_format(lines, assemble, source, planned, form) -> None:
    before, after = (lines, assemble) if form == "parquet" else (assemble, lines)
    chosen = Mask.of(np.array([row % 3 > 0 for row in range(10)]))
    rows = answers_of(range(6), errors=2)
    old = before.put(planned[0], {source.name: source}, [spread(rows, chosen)], {})
    new = after(Order(planned[0], {source.name: source}, (), old))
    for record in (old, new):
        assert (record.num_rows, record.num_errors) == (6, 2)
    whole = PartFile.of(after.store, new.part).whole()
    assert whole.footer.chosen == chosen
    assert whole.table(ANSWERS) == rows
    assert rows_with_errors(after.store, [new], frozenset()) == [((1, 3),)]
    none = Mask.of(np.zeros(10, bool))
    empty = after.put(planned[1], {source.name: source}, [spread(answers_of(range(0)), none)], {})
    assert PartFile.of(after.store, empty.part).whole().table(ANSWERS).num_rows == empty.num_rows == 0


def test_a_part_that_is_damaged_gives_no_answers(lines, put, source, planned, tmp_path) -> None:
    record = put(planned[0])
    path = tmp_path / "out" / record.part
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JobError, match=r"are not the ones that were written.*The same command computes it again"):
        lines(Order(planned[0], {source.name: source}, (), record))


def test_a_part_of_many_megabytes_is_read_in_pieces(lines, source, planned, monkeypatch) -> None:
    monkeypatch.setattr("batchloom.pipelines.ledger.part_files.PARSED_BYTES", 100)
    record = lines.put(planned[0], {source.name: source}, [answers_of(range(10))], {})
    assert PartFile.of(lines.store, record.part).columns(ANSWERS).combine_chunks() == answers_of(range(10))
