"""Outputs of JSON Lines: what verify, a later run and the commands that look at them make of what is there."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.jobs.reports.analysis.report import Report
from batchloom.jobs.reports.view import look
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.errors import ConfigError, OutputError
from batchloom.pipelines.ledger import ledger, ownership, part_files
from batchloom.pipelines.ledger.parts import key_of
from batchloom.pipelines.ledger.resume import Done
from batchloom.pipelines.ledger.verification import read_in_threads
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.shards import sources_of
from batchloom.pipelines.running.driver import Todo
from batchloom.pipelines.running.retry import Retry
from batchloom.pipelines.running.stream import assembler
from batchloom.pipelines.stages.assemble import Order
from tests.forms import write
from tests.pipelines.finished import answer, finish, summaries

NUM_ROWS = 45


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    (tmp_path / "in").mkdir()
    rows = pa.table({"id": range(NUM_ROWS), "text": [f"text {row}" for row in range(NUM_ROWS)]})
    write(rows, tmp_path / "in", "a", ".parquet")
    return summaries([str(tmp_path / "in")], tmp_path / "out", format="jsonl")


@pytest.fixture
def output(config: JobConfig) -> Path:
    finish(config)
    return Path(config.output.path)


def found(job: JobPlan) -> Done:
    return Done.find(job, ledger.look(job.output))


def written(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("part-*"))


def test_verify_reads_every_byte_where_it_is_asked_to(output) -> None:
    assert pipelines.verify(str(output)).ok
    assert pipelines.verify(str(output), deep=read_in_threads).ok
    part = output / written(output)[1]
    times = part.stat().st_atime_ns, part.stat().st_mtime_ns
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    os.utime(part, ns=times)
    assert pipelines.verify(str(output)).ok, "by name, size and time it is the same"
    (problem,) = pipelines.verify(str(output), deep=read_in_threads).problems
    assert problem.startswith(
        f"{part.name}: its bytes are not the ones that were written: there is no _batchloom/seals"
    )


def test_a_seal_that_is_gone_is_named(output) -> None:
    seal = next((output / "_batchloom/seals").rglob("*.pq"))
    seal.unlink()
    (problem,) = pipelines.verify(str(output)).problems
    assert problem.endswith(f": its seal is missing, {seal.relative_to(output)}")


def test_a_part_without_its_seal_is_computed_again_though_it_has_a_record(config, output) -> None:
    """The run said that all was done, and verify for ever that a seal was missing."""
    next((output / "_batchloom/seals").rglob("*.pq")).unlink()
    job = pipelines.plan(config)
    (pending,) = found(job).pending(job)
    assert pending.missing == ((0, pending.part.num_rows),)


def test_parts_tell_by_themselves_that_they_are_done(config, output) -> None:
    for name in ("manifest.json", "parts.pq", "job.json"):
        (output / "_batchloom" / name).unlink()
    job = pipelines.plan(config)
    assert len(found(job).register) == 5
    assert not list(found(job).pending(job))
    next((output / "_batchloom/seals").rglob("*.pq")).unlink()
    (pending,) = found(job).pending(job)
    assert pending.missing == ((0, pending.part.num_rows),), "without a seal nobody knows what the part is"


def test_a_file_of_a_stranger_is_in_the_way_and_stays(config, output) -> None:
    job = pipelines.plan(config)
    (output / "notes.jsonl.gz").touch()
    with pytest.raises(OutputError, match=r"files that no batchloom job wrote \(notes\.jsonl\.gz\)"):
        ownership.refuse_foreign(job, ledger.look(job.output))
    assert "notes.jsonl.gz: it is in the output and not in the manifest" in pipelines.verify(str(output)).problems
    (output / "notes.jsonl.gz").unlink()
    named_alike = output / f"part-x-{'0' * 12}-{'1' * 8}.jsonl"
    named_alike.touch()
    again = pipelines.plan(replace(config, output=replace(config.output, mode="overwrite")))
    with pytest.raises(OutputError, match=r"files that no batchloom job wrote \(part-x"):
        ownership.refuse_foreign(again, ledger.look(again.output))
    named_alike.unlink()
    ownership.refuse_foreign(again, ledger.look(again.output))
    ledger.open_job(again.output, again.job_record(), ledger.look(again.output))
    assert not written(output)
    assert not (output / "_batchloom/seals").exists()


def rewrite(job: JobPlan) -> Iterator[str]:
    """Write all parts of another layout again, and yield their names, as the tasks of a job do."""
    todo = Todo.of(job, found(job), Retry.none())
    assert todo.num_units == 0, "nothing is computed"
    for pending in todo.pending:
        sources = sources_of(pending.part.spans, job.shards_by_name)
        yield assembler(job)(Order(pending.part, sources, pending.saved, pending.earlier)).part


@pytest.mark.parametrize("before", [{"format": "parquet"}, {"format": "jsonl", "compression": "none"}])
def test_another_format_rewrites_parts_and_computes_nothing_whenever_it_is_stopped(config, tmp_path, before) -> None:
    config = replace(config, output=replace(config.output, compression="zstd"))
    whole = replace(config, output=replace(config.output, path=str(tmp_path / "whole")))
    finish(whole)
    finish(replace(config, output=replace(config.output, **{"compression": None} | before)))
    output, job = tmp_path / "out", pipelines.plan(config)
    assert len(found(job).of_another_layout(job)) == 5
    old = written(output)[0]
    kept = {path: path.read_bytes() for path in [output / old, *(output / "_batchloom").glob("seals/*/*.pq")]}
    rewriting = rewrite(job)
    new = next(rewriting)
    assert old not in written(output)
    for path, content in kept.items():  # as where it was killed between writing the one and removing the other
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert len(written(output)) == 6
    (output / "_SUCCESS").unlink()
    assert look(str(output)).totals["rows"] == NUM_ROWS
    done = found(job)
    assert (done.superseded, len(done.register)) == ((old,), 5)
    assert new in done.register.table["part"].to_pylist()
    assert len(done.of_another_layout(job)) == 4
    assert Todo.of(job, done, Retry.none()).num_rows == 0
    ledger.open_job(job.output, job.job_record(), None, done.superseded)
    assert len([*rewriting]) == 4
    assert not [*rewrite(job)]
    assert {name: (output / name).read_bytes() for name in written(output)} == {
        name: (tmp_path / "whole" / name).read_bytes() for name in written(tmp_path / "whole")
    }
    assert not found(job).superseded


def test_what_looks_at_outputs_reads_json_lines(output) -> None:
    for is_finished in (True, False):
        view = look(str(output))
        assert (view.manifest is not None) == is_finished
        assert view.totals["rows"] == NUM_ROWS
        rows = view.sample(5)
        assert [row["summary_text"] for row in rows] == [answer("a.parquet", row["id"]) for row in rows]
        report = Report.of(view)
        assert report.scan.num_rows == NUM_ROWS
        for name in ("manifest.json", "parts.pq") if is_finished else ():
            (output / "_batchloom" / name).unlink()


def test_columns_that_readers_may_ask_for_are_readable_by_all(output) -> None:
    path = output / "_batchloom/columns.pq"
    assert pq.read_schema(path).names[:2] == ["id", "summary_text"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert (output / "_batchloom/job.json").stat().st_mode & 0o777 == 0o600


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("compression", ["snappy", "lz4"])
def test_a_compression_that_json_lines_do_not_have_is_refused(config, compression) -> None:
    with pytest.raises(ConfigError, match=f"output.compression: is {compression}, and JSON Lines .* none, gzip, zstd"):
        pipelines.plan(replace(config, output=replace(config.output, compression=compression)))


def test_an_output_that_the_next_run_would_read_is_refused(config, tmp_path) -> None:
    write(pa.table({"text": ["a"]}), tmp_path / "in", "a", ".jsonl.gz")
    reading = replace(config.input, paths=(f"{tmp_path}/*/*.jsonl.gz",))
    with pytest.raises(ConfigError, match="lie in each other"):
        pipelines.plan(replace(config, input=reading))


def test_formats_change_the_layout_and_not_the_fingerprint(config) -> None:
    plans = [
        pipelines.plan(replace(config, output=replace(config.output, **how)))
        for how in ({}, {"format": "parquet"}, {"compression": "none"}, {"statistics": False}, {"row_group_rows": 5})
    ]
    assert len({plan.fingerprint for plan in plans}) == 1
    assert len({plan.layout for plan in plans}) == 3, "JSON Lines have no row groups and no statistics"
    assert len({plan.name_of(plan.parts[0]) for plan in plans}) == 3
    assert len({key_of(plan.name_of(plan.parts[0])) for plan in plans}) == 1


def test_float16_columns_are_read_again() -> None:
    """Arrow's reader of JSON knows no float16: such an output could be neither retried nor laid out anew."""
    pairs = pa.list_(pa.list_(pa.float16()))
    schema = pa.schema(
        [("embedding", pa.list_(pa.float16())), ("states", pairs), ("one", pa.struct([("x", pa.float16())]))]
    )
    line = b'{"embedding": [1.5, 2.25], "states": [[0.5], []], "one": {"x": 4.0}}\n'
    table = part_files._parsed(line + b'{"embedding": null, "states": null, "one": null}\n', schema)
    assert table.schema == schema
    assert table["embedding"].to_pylist() == [[1.5, 2.25], None]
    assert table["states"].to_pylist() == [[[0.5], []], None]
    assert table["one"].to_pylist() == [{"x": 4.0}, None]
