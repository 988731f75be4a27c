"""Parts of many units, units of many shards, and outputs whose sizes or columns change between two runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import JobError, OutputError
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.metrics import Event, PartDone, Planned, ReplicasStarting, UnitDone

pytestmark = pytest.mark.usefixtures("ray_cluster")


def parts(job: JobConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(job.output.path).glob("*.parquet")}


def private(job: JobConfig) -> set[str]:
    return {path.name for path in (Path(job.output.path) / "_batchloom").iterdir()}


def run(job: JobConfig, watch: Callable[[Event], None] = lambda _: None) -> tuple[Manifest, list[type]]:
    kinds: list[type] = []

    def see(event: Event) -> None:
        kinds.append(type(event))
        watch(event)

    return pipelines.run(job, see), kinds


def interrupted_after(num_units: int) -> Callable[[Event], None]:
    left = [num_units]

    def stop(event: Event) -> None:
        left[0] -= isinstance(event, UnitDone)
        if not left[0]:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def many(make_job: Callable[..., JobConfig]) -> Callable[..., JobConfig]:
    """A job of units of five rows, and of two parts: shard a alone with 40 rows, b and c together with 35."""
    return lambda **changes: make_job(**{"rows_per_unit": 5, "rows_per_part": 40} | changes)


def test_a_part_of_many_units_has_the_rows_of_parts_of_one(many, make_job, tmp_path, output_table) -> None:
    job, apart = many(), make_job(output=str(tmp_path / "apart"))
    manifest, kinds = run(job)
    pipelines.run(apart)
    assert output_table(job.output.path) == output_table(apart.output.path)
    assert [record.num_rows for record in manifest.parts] == [40, 35]
    assert [pq.read_table(Path(job.output.path) / record.part)["id"].to_pylist() for record in manifest.parts] == [
        list(range(40)),
        list(range(40, 75)),
    ]
    assert (kinds.count(UnitDone), kinds.count(PartDone)) == (manifest.timing["units_computed"], 2)
    assert private(job) == {"footers.pq", "job.json", "manifest.json", "parts.pq"}
    verification = pipelines.verify(job.output.path)
    assert (verification.ok, verification.num_rows, verification.num_parts) == (True, 75, 2)


def test_answers_of_an_unfinished_part_survive_a_stop(many, tmp_path) -> None:
    whole = many(output=str(tmp_path / "whole"))
    total = pipelines.run(whole).timing["units_computed"]
    job = many()
    with pytest.raises(KeyboardInterrupt):
        run(job, interrupted_after(4))
    saved = len(list((Path(job.output.path) / "_batchloom" / "answers").rglob("*.pq")))
    assert saved >= 4
    planned: list[Planned] = []
    manifest, _ = run(job, lambda event: planned.append(event) if isinstance(event, Planned) else None)
    assert manifest.timing["units_computed"] <= total - 4
    assert planned[0].num_rows_done >= 4
    assert parts(job) == parts(whole)
    assert pipelines.verify(job.output.path).ok


def test_another_size_of_units_or_parts_computes_nothing_again(many, output_table) -> None:
    job = many()
    with pytest.raises(KeyboardInterrupt):
        run(job, interrupted_after(11))
    there = parts(job)
    manifest, _ = run(many(rows_per_unit=7, rows_per_part=20))
    assert there.items() <= parts(job).items()
    assert output_table(job.output.path)["id"].to_pylist() == list(range(75))
    assert pipelines.verify(job.output.path).ok
    again, kinds = run(many(rows_per_unit=3, rows_per_part=1))
    assert again.parts == manifest.parts
    assert ReplicasStarting not in kinds


def test_other_kept_columns_need_no_model(many, output_table) -> None:
    job = many(keep_columns=("id",))
    before, _ = run(job)
    answers = output_table(job.output.path)
    wider = many(keep_columns=("note", "id"))
    manifest, kinds = run(wider)
    assert ReplicasStarting not in kinds
    assert UnitDone not in kinds
    assert manifest.timing["units_computed"] == 0
    table = output_table(job.output.path)
    assert table.column_names == ["note", *answers.column_names]
    assert table.select(answers.column_names) == answers
    assert table["note"].to_pylist() == [f"note {i}" if i % 3 else None for i in range(75)]
    assert (manifest.fingerprint, manifest.layout) == (before.fingerprint, manifest.parts[0].layout)
    assert manifest.layout != before.layout
    assert pipelines.verify(job.output.path).ok
    assert run(wider)[0] == manifest


def test_files_are_written_as_asked_and_written_anew_where_that_changes(many, output_table) -> None:
    job = many(rows_per_part=100)
    run(job)
    answers = output_table(job.output.path)

    def groups(output: dict[str, Any]) -> list[tuple[int, str, bool]]:
        changed = many(rows_per_part=100)
        manifest, kinds = run(replace(changed, output=replace(changed.output, **output)))
        assert ReplicasStarting not in kinds
        assert pipelines.verify(job.output.path).ok
        (record,) = manifest.parts
        assert pq.read_table(Path(job.output.path) / record.part) == answers, "in the order of the input"
        metadata = pq.read_metadata(Path(job.output.path) / record.part)
        found = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return [
            (group.num_rows, group.column(0).compression, group.column(0).statistics is not None) for group in found
        ]

    assert groups({}) == [(75, "ZSTD", True)]
    assert groups({"row_group_rows": 30}) == [(30, "ZSTD", True), (30, "ZSTD", True), (15, "ZSTD", True)]
    assert groups({"compression": "none", "statistics": False}) == [(75, "UNCOMPRESSED", False)]
    for compression in ("snappy", "gzip", "lz4"):
        ((_, found, _),) = groups({"compression": compression})
        assert found.lower().startswith(compression)


def test_a_layout_that_was_changed_half_way_is_finished(many, output_table) -> None:
    job, wider = many(keep_columns=("id",)), many(keep_columns=("id", "note"))
    run(job)

    def stop(event: Event) -> None:
        if isinstance(event, PartDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wider, stop)
    with pytest.raises(OutputError, match="is not finished"):
        pipelines.verify(job.output.path)
    _, kinds = run(wider)
    assert ReplicasStarting not in kinds
    assert output_table(job.output.path)["note"].null_count == 25
    assert pipelines.verify(job.output.path).ok


def test_columns_of_an_input_that_is_gone_cannot_be_added(many, corpus) -> None:
    job = many(keep_columns=("id",), rows_per_part=10)
    run(job)
    whole = parts(job)
    (corpus / "b.parquet").unlink()
    keeping = replace(many(), input=replace(many().input, missing="keep"))
    with pytest.raises(
        OutputError, match=r"its input is gone \(b\.parquet\)\. Put it back, or set input\.keep_columns"
    ):
        run(keeping)
    assert parts(job) == whole


def test_files_of_one_row_share_units_and_parts(make_job, tmp_path, make_sentences, output_table) -> None:
    (tmp_path / "rows").mkdir()
    for row, text in enumerate(make_sentences(30)):
        pq.write_table(pa.table({"id": [row], "text": [text]}), tmp_path / "rows" / f"{row:03}.parquet")
    job = make_job(paths=(str(tmp_path / "rows"),), rows_per_unit=10, rows_per_part=20)
    manifest, _ = run(job)
    assert [record.num_rows for record in manifest.parts] == [20, 10]
    assert manifest.timing["units_computed"] == 3
    assert manifest.totals["shards"] == 30
    assert output_table(job.output.path)["id"].to_pylist() == list(range(30))
    before = parts(job)
    pq.write_table(pa.table({"id": [30], "text": ["One more."]}), tmp_path / "rows" / "0045.parquet")  # in the middle
    assert run(job)[0].timing["units_computed"] == 1
    assert before.items() <= parts(job).items()
    assert output_table(job.output.path)["id"].to_pylist() == list(range(31))
    assert pipelines.verify(job.output.path).ok


def test_damage_of_a_kept_column_is_an_error_of_its_rows_alone(make_job, tmp_path, make_sentences) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    texts = make_sentences(20)
    table = pa.table({"id": range(20), "note": [f"note {row} " * 50 for row in range(20)], "text": texts})
    pq.write_table(table, path, row_group_size=10, write_page_checksum=True, use_dictionary=False, compression="none")
    place = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    content[place.data_page_offset + 3000 : place.data_page_offset + 3010] = b"\0" * 10
    path.write_bytes(content)
    job = make_job(paths=(str(tmp_path / "in"),), rows_per_unit=5, rows_per_part=20)
    manifest, _ = run(job)
    assert manifest.errors_by_kind == {"damaged_input": 10}
    found = pq.read_table(job.output.path)
    assert found["note"].to_pylist()[:10] == table["note"].to_pylist()[:10]
    assert found["summary_text"].is_null().to_pylist() == [False] * 10 + [True] * 10
    assert found["num_input_tokens"].null_count == 0
    assert pipelines.verify(job.output.path).ok


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_answers_that_are_lost_before_their_part_is_written_are_computed_again(many, output_table, harm: str) -> None:
    job = many()
    with pytest.raises(KeyboardInterrupt):
        run(job, interrupted_after(3))
    answers = Path(job.output.path) / "_batchloom" / "answers"
    first, *_ = sorted(answers.rglob("*.pq"))
    if harm == "damaged":
        content = bytearray(first.read_bytes())
        content[100] ^= 1
        first.write_bytes(content)

    def delete(event: Event) -> None:
        if isinstance(event, ReplicasStarting) and harm == "deleted":
            first.unlink()

    with pytest.raises(JobError, match=r"1 part failed(.|\n)*computes? (it|them) again"):
        run(job, delete)
    assert not (Path(job.output.path) / "_SUCCESS").exists()
    run(job)
    assert output_table(job.output.path)["id"].to_pylist() == list(range(75))
    assert pipelines.verify(job.output.path).ok
