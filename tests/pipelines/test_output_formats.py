"""Jobs that write JSON Lines: the same rows as in Parquet, whatever interrupts them and whatever is changed between."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import JobError
from batchloom.pipelines.ledger.part_files import PartFile
from batchloom.pipelines.ledger.verification import read_in_threads
from batchloom.pipelines.metrics import Event, PartDone, ReplicasStarting, UnitDone
from batchloom.pipelines.stores.storage import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")


def written(job: JobConfig) -> dict[str, bytes]:
    root = Path(job.output.path)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("part-*")}


def rows(job: JobConfig) -> list[dict[str, Any]]:
    """The rows of all parts, in the order of their ids."""
    store = Store(job.output.path)
    blocks = (block for name in written(job) for block in PartFile.of(store, name).whole().blocks())
    return sorted((json.loads(line) for block in blocks for line in block.splitlines()), key=lambda row: row["id"])


def as_lines(job: JobConfig, **how: Any) -> JobConfig:
    return replace(job, output=replace(job.output, **({"format": "jsonl"} | how)))


def interrupt(event: Event) -> None:
    if isinstance(event, PartDone):
        raise KeyboardInterrupt


def interrupt_units(event: Event) -> None:
    if isinstance(event, UnitDone):
        raise KeyboardInterrupt


def verified(job: JobConfig) -> bool:
    """Also with every byte read."""
    return pipelines.verify(job.output.path).ok and pipelines.verify(job.output.path, deep=read_in_threads).ok


@pytest.fixture
def parquet(make_job: Callable[..., JobConfig]) -> JobConfig:
    return make_job(rows_per_unit=5, rows_per_part=20)


def test_a_job_that_is_interrupted_three_times_ends_like_one_that_was_not(parquet, tmp_path) -> None:
    job = as_lines(parquet)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            pipelines.run(job, interrupt)
    pipelines.run(job)
    assert verified(job)
    whole = replace(job, output=replace(job.output, path=str(tmp_path / "whole")))
    pipelines.run(whole)
    assert written(job) == written(whole)
    assert all(name.endswith(".jsonl.gz") for name in written(job))
    pipelines.run(replace(parquet, output=replace(parquet.output, path=str(tmp_path / "parquet"))))
    assert rows(job) == pq.read_table(tmp_path / "parquet").sort_by("id").to_pylist()


def test_another_format_is_written_of_what_is_there_and_computes_nothing(parquet) -> None:
    """Also where it is stopped half way, and with other columns at the same time."""
    kinds: list[type] = []

    def watch(event: Event) -> None:
        kinds.append(type(event))

    def watch_and_interrupt(event: Event) -> None:
        watch(event)
        interrupt(event)

    pipelines.run(parquet)
    before = written(parquet)
    kept = replace(as_lines(parquet, compression="zstd"), input=replace(parquet.input, keep_columns=("id",)))
    with pytest.raises(KeyboardInterrupt):
        pipelines.run(kept, watch_and_interrupt)
    assert not pipelines.plan(kept).output.names().get("_SUCCESS")
    pipelines.run(kept, watch)
    assert verified(kept)
    assert [row["id"] for row in rows(kept)] == list(range(75))
    assert "note" not in rows(kept)[0]
    for job in (as_lines(parquet, compression="none"), as_lines(parquet), parquet):
        pipelines.run(job, watch)
        assert verified(job)
        assert len({name.partition(".parquet-")[2].partition(".")[2] for name in written(job)}) == 1
    assert not {ReplicasStarting, UnitDone} & set(kinds)
    assert written(parquet) == before
    assert not (Path(parquet.output.path) / "_batchloom/seals").exists()


def test_parts_lie_in_folders_whatever_interrupts_the_job(make_job, tmp_path, make_sentences) -> None:
    for number, lang in enumerate(("en", "d%2Fe", "en/day=1")):
        folder = tmp_path / "tree" / f"lang={lang}"
        folder.mkdir(parents=True, exist_ok=True)
        texts = make_sentences(20, seed=number)
        pq.write_table(pa.table({"id": range(20 * number, 20 * number + 20), "text": texts}), folder / "a.parquet")
    job = make_job(paths=(str(tmp_path / "tree"),), rows_per_unit=5, rows_per_part=50, keep_columns=("id",))
    by_lang = as_lines(job, partition_by=("lang",))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pipelines.run(by_lang, interrupt_units)
    manifest = pipelines.run(by_lang)
    assert verified(by_lang)
    assert [(record.part.partition("/")[0], record.num_rows) for record in manifest.parts] == [
        ("lang=d%2Fe", 20),
        ("lang=en", 40),
    ]
    pipelines.run(replace(job, output=replace(job.output, path=str(tmp_path / "flat"))))
    flat = pq.read_table(tmp_path / "flat").sort_by("id").to_pylist()
    assert rows(by_lang) == [{name: row[name] for name in rows(by_lang)[0]} for row in flat]
    pipelines.run(replace(by_lang, output=replace(by_lang.output, format="parquet")))
    assert pq.read_table(job.output.path).sort_by("id").drop_columns(["lang"]).to_pylist() == flat


def test_rows_with_errors_are_computed_again_and_no_other_byte_changes(make_job, tmp_path) -> None:
    (tmp_path / "odd").mkdir()
    texts = ["word " * 10, None, "word " * 500, "word", "word " * 600, "more words"]
    pq.write_table(pa.table({"id": range(6), "text": texts}), tmp_path / "odd" / "odd.parquet")
    job = as_lines(make_job(paths=(str(tmp_path / "odd"),), rows_per_unit=2, rows_per_part=6))
    before = pipelines.run(job)
    assert before.errors_by_kind == {"null_text": 1, "too_long": 2}
    old = rows(job)
    cured = replace(job, task_options={"long_documents": "truncate"})
    manifest = pipelines.run(cured, retry_errors=["too_long"])
    assert manifest.errors_by_kind == {"null_text": 1}
    assert manifest.timing["units_computed"] == 1
    assert verified(job)
    now = rows(job)
    assert [row for row in now if row["id"] not in (2, 4)] == [row for row in old if row["id"] not in (2, 4)]
    assert all(now[row]["summary_text"] and now[row]["error"] is None for row in (2, 4))
    assert len(list((Path(job.output.path) / "_batchloom/seals").rglob("*.pq"))) == 1


@pytest.mark.parametrize("is_closed", [True, False])
def test_parts_whose_seals_are_gone_are_computed_again(parquet, is_closed) -> None:
    """What the command ends with is what verify says: it passed over them, and verify named them."""
    job = as_lines(parquet)
    pipelines.run(job)
    before, root = written(job), Path(job.output.path)
    if not is_closed:
        (root / "_SUCCESS").unlink()
        (root / "_batchloom/manifest.json").unlink()
    gone = sorted((root / "_batchloom/seals").rglob("*.pq"))[::2]
    for seal in gone:
        seal.unlink()
    pipelines.run(job)
    assert verified(job)
    assert written(job) == before


def test_a_seal_that_goes_while_the_job_runs_keeps_it_open(parquet) -> None:
    job = as_lines(parquet)
    seals = Path(job.output.path) / "_batchloom/seals"

    def remove(event: Event) -> None:
        if isinstance(event, PartDone) and not removed:
            removed.append(next(seals.rglob("*.pq")))
            removed[0].unlink()

    removed: list[Path] = []
    with pytest.raises(JobError, match="lost 1 of 6 parts while the job ran"):
        pipelines.run(job, remove)
    pipelines.run(job)
    assert verified(job)
