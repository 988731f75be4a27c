"""Time what a driver does for a job of many units: plan it, find what is done, close it, verify it.

    python -m benchmarks.scale --units 1000 10000 100000 1000000
    python -m benchmarks.scale --units 11000 --units-per-part 1         10,000 parts, when it is resumed
    python -m benchmarks.scale --units 1000000 --kill                   the last 1,000 units computed, and killed

Shards have 100 row groups of ten rows, a unit each; a part has 64 units, unless told. Parts are put with made-up
answers, as computing a million units takes hours. All else is what `run` and `verify` do, on local files in the page
cache. A step runs in a process of its own, whose peak memory is told. With `--kill` the last 1,000 units are
computed by a real job on Ray: SIGKILL ends its driver when 300 of them are done, and the same job is run again.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom import pipelines
from batchloom.pipelines.config import InputConfig, JobConfig, OutputConfig
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.ledger.resume import Done
from batchloom.pipelines.metrics import UnitDone
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.running.account import Account
from batchloom.pipelines.running.driver import Retry, Todo
from batchloom.pipelines.running.stream import assembler
from batchloom.pipelines.stores.storage import Store
from benchmarks import record

ROWS, GROUPS = 10, 100
LEFT = 1000  # units that are not done when the job is resumed
KILLED_AFTER = 300  # of them
TOPICS = Path(__file__).resolve().parents[1] / "examples/demo_models/docs-bart-mini-mnli"


@contextmanager
def timed(told: dict[str, float], name: str) -> Iterator[None]:
    wall, reads = time.perf_counter(), READS.copy()
    yield
    told[f"{name} s"] = round(time.perf_counter() - wall, 2)
    told[f"{name} files"] = READS["files"] - reads["files"]
    told[f"{name} MB"] = round((READS["bytes"] - reads["bytes"]) / 1e6, 1)
    told[f"{name} peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


READS = {"files": 0, "bytes": 0}


def count_reads() -> None:
    """Count what is read of the output."""
    read: Callable[[Store, str], bytes] = Store.read

    def counted(self: Store, name: str) -> bytes:
        content = read(self, name)
        READS["files"] += 1
        READS["bytes"] += len(content)
        return content

    Store.read = counted  # type: ignore[method-assign]


def make_input(folder: Path, num_shards: int) -> None:
    folder.mkdir()
    rows = ROWS * GROUPS
    table = pa.table({"id": range(rows), "text": [f"text {row}" for row in range(rows)]})
    pq.write_table(table, folder / "0000000.parquet", row_group_size=ROWS, write_statistics=False)
    for number in range(1, num_shards):
        os.link(folder / "0000000.parquet", folder / f"{number:07d}.parquet")


def job_over(folder: Path, units_per_part: int) -> JobConfig:
    return JobConfig(
        task="zero-shot-classification",
        model=str(TOPICS),
        input=InputConfig(paths=(str(folder / "in"),), rows_per_unit=ROWS),
        output=OutputConfig(path=str(folder / "out"), rows_per_part=ROWS * units_per_part),
        task_options={"candidate_labels": ["one", "two"]},
    )


def put_parts(job: JobPlan, todo: Todo, account: Account, num_units: int) -> None:
    """Put parts with answers made up, until so many units are done."""
    assemble = assembler(job)
    empty = pa.schema([*job.task.output_fields(), *LEDGER_FIELDS]).empty_table()
    answers: dict[int, pa.Table] = {}
    with ledger.RecordLog(job.output) as records:
        for pending in todo.pending:
            rows = pending.part.num_rows
            if rows not in answers:
                nulls = [pa.nulls(rows, field.type) for field in empty.schema]
                answers[rows] = pa.table(nulls, empty.schema)
            sources = {span.shard: job.shards_by_name[span.shard].source for span in pending.part.spans}
            record = assemble.put(pending.part, sources, [answers[rows]], {})
            account.wrote(record, {})
            records.add(record)
            num_units -= rows // ROWS
            if num_units <= 0:
                return


def look(job: JobPlan) -> tuple[Todo, Account]:
    """Do what `run` does before it streams."""
    found = ledger.look(job.output)
    ownership.refuse_foreign(job, found)
    done = Done.find(job, found)
    todo = Todo.of(job, done, Retry.none())
    return todo, todo.account(job, done, Retry.none())


def measure(folder: Path, num_units: int, units_per_part: int, step: str) -> dict[str, float]:
    """One step in a process of its own, so that its peak of memory is its own."""
    told: dict[str, float] = {}
    config = job_over(folder, units_per_part)
    count_reads()
    if step == "plan":
        make_input(folder / "in", num_units // GROUPS)
        with timed(told, "plan"):
            job = pipelines.plan(config)
            assert job.num_units == num_units
        ledger.open_job(job.output, job.job_record(), overwritten=None)
        job.keep_footers()
    elif step == "plan again":
        with timed(told, "plan again"):
            assert pipelines.plan(config).num_units == num_units
    elif step == "fill":
        job = pipelines.plan(config)
        todo, account = look(job)
        put_parts(job, todo, account, num_units - LEFT)
    elif step == "resume":
        job = pipelines.plan(config)
        with timed(told, "resume"):
            todo, account = look(job)
        told["units left"] = todo.num_units
        put_parts(job, todo, account, todo.num_units)
        with timed(told, "close"):
            manifest = account.manifest()
            found = ledger.check_parts(job.output, manifest.parts)
            ownership.refuse_company(job, found, ours=manifest.parts.table["part"].to_pylist())
            ledger.close_job(job.output, manifest)
        private = Path(job.output.path()) / "_batchloom"
        told["manifest kB"] = round((private / "manifest.json").stat().st_size / 1e3, 1)
        told["records MB"] = round((private / "parts.pq").stat().st_size / 1e6, 2)
        told["parts"] = len(manifest.parts)
    elif step in ("killed", "run"):
        began, done = time.perf_counter(), 0

        def tell(event: object) -> None:
            nonlocal done
            if isinstance(event, UnitDone):
                done += 1
                if done == 1:
                    told[f"{step} first unit s"] = round(time.perf_counter() - began, 1)
                if step == "killed" and done == KILLED_AFTER:
                    print(json.dumps(told), flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)

        manifest = pipelines.run(config, tell)
        told["run s"] = round(time.perf_counter() - began, 1)
        told["run units computed"] = manifest.timing["units_computed"]
        told["run peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    else:
        with timed(told, "verify"):
            found = pipelines.verify(str(folder / "out"))
            assert found.ok, found.problems[:3]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--units-per-part", type=int, default=64)
    parser.add_argument("--kill", action="store_true")
    record.add_options(parser)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do:
        print(json.dumps(measure(asked.folder, asked.units[0], asked.units_per_part, asked.do)))
        return
    figures = []
    for num_units in asked.units:
        told: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for step in ("plan", "plan again", "fill", *(("killed", "run") if asked.kill else ("resume",)), "verify"):
                command = [sys.executable, "-m", "benchmarks.scale", "--do", step, "--folder", folder]
                command += ["--units", str(num_units), "--units-per-part", str(asked.units_per_part)]
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == (-signal.SIGKILL if step == "killed" else 0), done.stderr
                told |= json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
        print(f"{num_units} units: {json.dumps(told)}", flush=True)
        figures += record.told(told, f"{num_units} units")
    title = "what a driver does for a job of many units"
    workload = {"rows_of_a_unit": ROWS, "units_of_a_part": asked.units_per_part, "units_left": LEFT}
    record.write(asked.results, "scale-killed" if asked.kill else "scale", title, workload, figures)


if __name__ == "__main__":
    main()
