"""Inputs are what rows of an output were answered to: from its kept columns, else from the input, by few reads."""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from batchloom.jobs.reports.analysis.scan import Place
from batchloom.jobs.reports.view import Row, View, section
from batchloom.models.patience import Patience
from batchloom.models.redaction import redacted
from batchloom.pipelines.columns.given import with_partitions
from batchloom.pipelines.columns.nested import marked, with_paths
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import PipelineError
from batchloom.pipelines.ledger.parts import Footer
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.shards import Shard, find_shards, sources_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.stages.reader import Reader
from batchloom.pipelines.tasks.prompts import Template

log = logging.getLogger(__name__)

PATIENCE = Patience(seconds=20.0, doubtful_seconds=5.0, timeout=30.0)  # a report does without, and says so

Asked = Mapping[str, Any]
"""Values of the columns that a task reads."""


def asked_columns(job: Mapping[str, Any]) -> list[str]:
    """Return the columns that a job's task reads and that a person wants to see beside an answer.

    Raises: ConfigError where its template is none.
    """
    given, options = section(job, "input"), section(job, "task_options")
    if job["task"] == "question-answering":
        return [given.get("question_column", "question"), given.get("context_column", "context")]
    if template := options.get("prompt_template"):
        return list(Template(str(template)).columns)
    own = [options.get(name) for name in ("persona_column", "labels_column", "target_column", "targets_column")]
    return [name for name in (given.get("text_column", "text"), given.get("text_pair_column"), *own) if name]


def asked_of(
    view: View, config: InputConfig | None, rows: Sequence[tuple[Place, Row]]
) -> tuple[list[Asked | None], str]:
    """Return the input of each row, None where it cannot be had, and then why. `config`: None where it is not known."""
    try:
        columns = asked_columns(view.job)
        if set(columns) <= set(view.kept_columns):
            return [{name: row.get(name) for name in columns} for _, row in rows], ""
        if config is None or not config.paths:
            return [None] * len(rows), "the output does not tell what its input is"
        return _read(view, config, columns, [place for place, _ in rows])
    except PipelineError as error:
        return [None] * len(rows), redacted(str(error))


def _read(
    view: View, config: InputConfig, columns: Sequence[str], places: Sequence[Place]
) -> tuple[list[Asked | None], str]:
    """Read the rows of the input. Raises: PipelineError where it is not there."""
    shards, schemas = find_shards(config, PATIENCE, None, KeptFooters(view.store, None))
    known = {shard.name: (shard, schema) for shard, schema in zip(shards, schemas, strict=True)}
    spans = _spans(view, places)
    found: dict[Span, Asked] = {}
    for name in dict.fromkeys(span.shard for span in spans if span is not None):
        own = sorted({span for span in spans if span is not None and span.shard == name})
        shard, schema = known.get(name, (None, None))
        if shard is not None and shard.source.identity == own[0].identity:
            found |= _read_shard(config, shard, schema, columns, own)
    asked = [None if span is None else found.get(span) for span in spans]
    is_whole = all(one is not None for one in asked)
    return asked, "" if is_whole else "files of the input are not there any more, or are not as they were answered"


def _read_shard(
    config: InputConfig, shard: Shard, schema: pa.Schema, columns: Sequence[str], spans: Sequence[Span]
) -> Mapping[Span, Asked]:
    whole = with_paths(with_partitions(schema, shard.source), columns)
    own = marked(pa.schema([whole.field(name) for name in columns if name in whole.names]), [schema])
    reader = Reader(own, dict(config.storage_options), config.paths[0], PATIENCE, shard.format)
    tables = reader.tables(sources_of(spans, {shard.name: shard}), [[span] for span in spans])
    found = {}
    for span, table in zip(spans, tables, strict=True):
        if isinstance(table, pa.Table):
            (row,) = table.to_pylist()
            found[span] = {name: row.get(name) for name in columns}
        else:
            log.warning("%s", table)
    return found


def _spans(view: View, places: Sequence[Place]) -> list[Span | None]:
    """Return the row of the input that each place is of; None where its part cannot be read."""
    footers: dict[str, Footer | None] = {}
    for record in {place.record.part: place.record for place in places}.values():
        footers[record.part] = view.read(record.part, lambda part, record=record: part.footer(record.bytes))  # type: ignore[misc]
    return [None if (footer := footers[place.record.part]) is None else _span(footer, place.row) for place in places]


def _span(footer: Footer, row: int) -> Span:
    number = row if footer.chosen is None else int(footer.chosen.rows[row])
    spans = footer.record.spans
    ends = np.cumsum([0, *(span.num_rows for span in spans)]).tolist()
    bounds = zip(spans, pairwise(ends), strict=True)
    span, start = next((span, start) for span, (start, stop) in bounds if start <= number < stop)
    first = span.start + number - start
    return Span(span.shard, span.identity, first, first + 1)
