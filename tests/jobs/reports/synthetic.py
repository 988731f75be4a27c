"""Outputs made of given columns by the ledger's own code, without a model: any task, any size, finished or not."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchloom.pipelines.config import OutputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.part_files import PartWriter
from batchloom.pipelines.ledger.parts import counts_of, footer_for
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.selection.mask import Mask
from batchloom.pipelines.stores.storage import Store

FINGERPRINT = "0123456789abcdef" * 4
TIMING = {
    "started": 1_800_000_000.0, "wall_seconds": 3600.0, "startup_seconds": 60.0, "units_computed": 4,
    "units_resumed": 0, "engine_prompt_tokens": 1000, "engine_padded_tokens": 1100, "engine_busy_seconds": 3000.0,
    "read_seconds": 200.0, "tokenize_seconds": 800.0, "write_seconds": 90.5, "assemble_seconds": 9.5, "num_replicas": 2,
    "replicas_computing_seconds": 3000.0, "replicas_waiting_seconds": 600.0, "replicas_loading_seconds": 120.0,
    "replicas_overhead_seconds": 280.0,
}  # fmt: skip


def table(answers: Mapping[str, Any], errors: Mapping[int, dict[str, str]] | None = None, **ledger: Any) -> pa.Table:
    """Return the rows of a part: kept and answered columns (arrays or lists), token counts, errors by row."""
    columns = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in answers.items()}
    num_rows = len(next(iter(columns.values())))
    given = {"num_input_tokens": [10] * num_rows, "num_output_tokens": [0] * num_rows} | ledger
    given = {"num_truncated_tokens": [0] * num_rows, "finish_reason": [None] * num_rows} | given
    given["error"] = [(errors or {}).get(row) for row in range(num_rows)]
    return pa.table({**columns, **{field.name: pa.array(given[field.name], field.type) for field in LEDGER_FIELDS}})


def write_output(
    folder: Path,
    task: str,
    parts: Sequence[pa.Table],
    *,
    kept: Sequence[str] = (),
    job: Mapping[str, Any] | None = None,
    degenerate: Mapping[str, int] | None = None,
    is_finished: bool = True,
    output: OutputConfig | None = None,
    identity: str = "0" * 16,
    shard: str = "a.parquet",
    chosen: Mask | None = None,
    **manifest: Any,
) -> Path:
    """Write an output whose part `i` answers the rows of one shard that follow those of part `i - 1`. `chosen`: which
    rows of the shard the only part answers."""
    output = output or OutputConfig(path=str(folder))
    store = Store(str(folder))
    layout_of = {"keep_columns": [[name, "string"] for name in kept]}
    record = {
        "batchloom": "0.1.0",
        "job": {"task": task, "model": "models/tiny", "input": {"paths": ["nowhere"]}, "output": {"path": str(folder)}}
        | dict(job or {}),
        "fingerprint": FINGERPRINT,
        "fingerprint_of": {},
        "retries": (),
        "layout": "layout",
        "layout_of": layout_of,
    }
    ledger.open_job(store, record, None)
    records, start = [], 0
    for rows in parts:
        span = Span(shard, identity, start, start + (rows.num_rows if chosen is None else chosen.num_rows))
        start = span.stop
        part = Part((span,))
        name = part.name(FINGERPRINT, output.ending)
        counts = counts_of(rows) | {"degenerate": dict(degenerate or {})}
        account: dict[str, Any] = {
            "fingerprint": FINGERPRINT,
            "layout": "layout",
            "version": "0.1.0",
            "ending": output.ending,
        }
        if chosen is not None:
            account["chosen"] = asdict(chosen)
        writer = PartWriter.of(output, rows.schema)
        writer.write(rows)
        put = writer.put(store, name, footer_for([span], counts, account))
        records.append(
            PartRecord(
                **counts,
                part=name,
                spans=(span,),
                layout="layout",
                bytes=put.bytes,
                sha256=put.sha256,
                version=put.version,
            )
        )
    if is_finished:
        register = Register.of(records)
        ledger.close_job(
            store,
            Manifest(
                **record,
                versions={"python": "3.11.0", "torch": "2.9.0"},
                totals={**register.totals(), "shards": 1},
                errors_by_kind=register.errors_by_kind(),
                degenerate=register.degenerate(),
                timing=TIMING,
                parts=register,
                parts_sha256=hashlib.sha256(register.to_bytes()).hexdigest(),
                **manifest,
            ),
            None,
        )
    return folder
