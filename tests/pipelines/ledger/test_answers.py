"""Answers beside their part: what is damaged is never trusted and blocks nothing, and no attempt changes a part."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.answers import Saved, folder_of, saved_for
from batchloom.pipelines.planning.spans import Range
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.stages.assemble import Assemble, Order
from batchloom.pipelines.stores.storage import Store
from tests.pipelines.faulty import FaultyFileSystem
from tests.pipelines.ledger.conftest import ANSWERS, FINGERPRINT, answers_of


@pytest.fixture
def permanent(assemble: Assemble) -> Iterator[Assemble]:
    """Writes to a store whose credentials permit no removal."""
    FaultyFileSystem.reset()
    FaultyFileSystem.always["remove"] = PermissionError("AccessDenied: s3:DeleteObject")
    yield replace(assemble, store=Store("faulty://out", patience=Patience(seconds=0.1, doubtful_seconds=0.1)))
    FaultyFileSystem.reset()


def save(store: Store, part: Part, ranges: tuple[Range, ...], errors: int = 0, copied: int = 0) -> Saved:
    saved = Saved(part.id, FINGERPRINT, ranges)
    rows = [row for start, stop in ranges for row in range(start, stop)]
    table = answers_of(range(part.num_rows), errors).take(rows)
    counts = dict.fromkeys(("num_errors", "num_input_tokens", "num_output_tokens", "num_truncated_tokens"), 0)
    saved.write(store, table, {**counts, "num_rows": len(rows), "degenerate": {"copied": copied} if copied else {}})
    return saved


def test_damaged_answers_that_may_not_be_removed_block_nothing(permanent, planned, source) -> None:
    """They failed their part each time: nothing but their removal let their rows be computed again."""
    store, part = permanent.store, planned[0]
    saved = [save(store, part, (own,)) for own in ((5, 10), (0, 5))]
    content = bytearray(store.read(saved[0].name))
    content[100] ^= 1
    store.put(saved[0].name, bytes(content))
    with pytest.raises(JobError, match=r"seal is broken\)\. They count no more, and the same command"):
        permanent(Order(part, {source.name: source}, saved))

    def there() -> list[Saved]:
        return saved_for(part, FINGERPRINT, ledger.look(store).answers.get(folder_of(part, FINGERPRINT), ()))

    assert there() == [saved[1]]
    assert save(store, part, ((5, 10),)) == saved[0]
    assert there() == [saved[1], saved[0]]
    record = permanent(Order(part, {source.name: source}, there()))
    assert record.num_rows == 10
    assert ledger.whole_parts(store, ledger.look(store), [record.part])[1] == {}


def test_all_damaged_answers_of_a_part_are_found_at_once(permanent, planned, source) -> None:
    """Each took a command of its own that failed."""
    store, part = permanent.store, planned[0]
    saved = [save(store, part, (own,)) for own in ((0, 2), (2, 4), (4, 10))]
    for one in saved[1:]:
        content = bytearray(store.read(one.name))
        content[100] ^= 1
        store.put(one.name, bytes(content))
    with pytest.raises(JobError, match=r"000000002-000000004\.pq is damaged .* and 1 more of its files\. They count"):
        permanent(Order(part, {source.name: source}, saved))
    assert saved_for(part, FINGERPRINT, ledger.look(store).answers[folder_of(part, FINGERPRINT)]) == saved[:1]


def test_answers_that_are_whole_at_a_second_look_are_taken(permanent, planned, source, monkeypatch) -> None:
    """And those that are gone when others are looked at are not damaged."""
    store, part = permanent.store, planned[0]
    saved = [save(store, part, (own,)) for own in ((0, 2), (2, 10))]
    read, looks = Store.read, []

    def once_damaged(self: Store, name: str) -> bytes:
        looks.append(name)
        return b"PAR1" if looks == [saved[0].name] else read(self, name)

    monkeypatch.setattr(Store, "read", once_damaged)
    assert permanent(Order(part, {source.name: source}, saved)).num_rows == 10
    assert looks.count(saved[0].name) == 2
    assert not saved[0].is_damaged(store, ANSWERS), "it is gone"


@pytest.mark.parametrize(("harm", "message"), [("another schema", "names"), ("too few", "holds 9 answers to 10 rows")])
def test_answers_that_do_not_fit_are_damaged(assemble, planned, harm: str, message: str) -> None:
    saved, counts = Saved(planned[0].id, FINGERPRINT, ((0, 10),)), {"num_rows": 10}
    rows = answers_of(range(10))
    saved.write(assemble.store, rows.drop_columns(["answer"]) if harm == "another schema" else rows[:9], counts)
    with pytest.raises(ValueError, match=message):
        saved.read(assemble.store, ANSWERS)


def test_answers_in_any_order_and_of_scattered_rows_make_the_part(
    assemble, planned, source, put_part, tmp_path
) -> None:
    """Each file is read once, however its rows lie between those of others."""
    part = planned[0]
    whole = put_part(part)
    content = (tmp_path / "out" / whole.part).read_bytes()
    (tmp_path / "out" / whole.part).unlink()
    saved = [save(assemble.store, part, ranges) for ranges in (((7, 10),), ((0, 1), (3, 5)), ((1, 3), (5, 7)))]
    assert assemble(Order(part, {source.name: source}, saved)) == whole
    assert pq.read_table(tmp_path / "out" / whole.part)["answer"].to_pylist() == [f"answer {row}" for row in range(10)]
    assert not list((tmp_path / "out" / "_batchloom").rglob("*.pq"))
    assert (tmp_path / "out" / whole.part).read_bytes() == content


def test_a_part_that_is_assembled_twice_of_its_old_self_is_the_same(assemble, planned, source, put_part) -> None:
    """A worker that was killed between the part and the removal of its answers: the next attempt found the new part as
    the old one, and counted degenerate answers twice."""
    part = planned[0]
    earlier = put_part(part, errors=3)
    saved = save(assemble.store, part, ((0, 2),), copied=1)
    order = Order(part, {source.name: source}, [saved], earlier)
    first = assemble(order)
    assert (first.num_errors, first.degenerate) == (1, {"copied": 1})
    save(assemble.store, part, ((0, 2),), copied=1)
    assert assemble(order) == first  # killed before the answers were removed
    assert assemble(order) == first  # and after


def test_an_old_part_does_not_pass_for_the_one_that_is_to_replace_it(assemble, planned, source, put_part) -> None:
    """It has the same name, so lost answers to rows that were computed again went unmentioned."""
    earlier = put_part(planned[0], errors=3)
    lost = Saved(planned[0].id, FINGERPRINT, ((0, 3),))
    with pytest.raises(JobError, match="is gone, and with it answers"):
        assemble(Order(planned[0], {source.name: source}, [lost], earlier))
