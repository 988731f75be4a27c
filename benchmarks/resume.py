"""Time what a resumed job does first: look at an output of many small parts and tell which are whole.

    python -m benchmarks.resume --parts 10000 [--beside CHECKOUT]

With `--beside`, another checkout of Batchloom does the same with parts of its own, in turns. Parts have ten rows, no
manifest is there, and the files are in the page cache: what is measured is our work, not the disk's.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.planning.shards import Shard
from batchloom.pipelines.planning.units import Unit, cut
from batchloom.pipelines.stages.write import Write
from batchloom.pipelines.storage import Store

FINGERPRINT = "0123456789abcdef" * 4
ROWS = 10


def units_of(num_parts: int) -> list[Unit]:
    shard = Shard(path="/a.parquet", name="a.parquet", size=1, version="1", row_groups=(ROWS,) * num_parts)
    return list(cut(shard, ROWS))


def write_parts(folder: str, num_parts: int) -> None:
    """Put the parts without a job: their answers are made up."""
    store = Store(folder)
    write = Write(task=None, model="", store=store, fingerprint=FINGERPRINT, version="0")  # type: ignore[arg-type]
    more = ({},) if "degenerate" in inspect.signature(write.put).parameters else ()
    schema = pa.schema([("id", pa.int64()), ("summary_text", pa.string()), *LEDGER_FIELDS])
    for unit in units_of(num_parts):
        ids = list(range(unit.start, unit.stop))
        columns = [pa.array([n] * ROWS, pa.int32()) for n in (40, 20, 0)]
        answers = pa.array([f"answer {i} " * 10 for i in ids])
        rest = [pa.array(["eos"] * ROWS), pa.nulls(ROWS, LEDGER_FIELDS[-1].type)]
        part = pa.table([pa.array(ids), answers, *columns, *rest], schema=schema)
        write.put(unit, part, *more)


def resume(folder: str, num_parts: int) -> dict[str, float]:
    """Return the seconds that one look takes, by the clock and of the processor."""
    store, planned = Store(folder), {unit.part_name(FINGERPRINT): unit for unit in units_of(num_parts)}
    more = ((),) if "kept" in inspect.signature(ledger.whole_parts).parameters else ()
    wall, cpu = time.perf_counter(), time.process_time()
    records = ledger.whole_parts(store, ledger.look(store), planned, *more)
    assert len(records) == num_parts, f"{len(records)} of {num_parts} parts are whole"
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def in_checkout(checkout: str, *arguments: str) -> str:
    """Run this file in a process that imports batchloom from a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": checkout}, check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", help="another checkout of Batchloom")
    parser.add_argument("--do", choices=["write", "resume"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.do == "write":
        write_parts(asked.folder, asked.parts)
    elif asked.do == "resume":
        print(json.dumps(resume(asked.folder, asked.parts)))
    else:
        here = str(Path(__file__).resolve().parents[1])
        checkouts = [checkout for checkout in (asked.beside, here) if checkout]
        with tempfile.TemporaryDirectory() as folder:
            folders = {checkout: f"{folder}/{number}" for number, checkout in enumerate(checkouts)}
            for checkout in checkouts:
                in_checkout(checkout, "--do", "write", "--folder", folders[checkout], "--parts", str(asked.parts))
            for number in range(asked.rounds):
                for checkout in checkouts:
                    asked_of = ("--do", "resume", "--folder", folders[checkout], "--parts", str(asked.parts))
                    took = json.loads(in_checkout(checkout, *asked_of))
                    print(f"round {number}: {checkout}: {took['wall']:.2f} s, {took['cpu']:.2f} s of the processor")


if __name__ == "__main__":
    main()
