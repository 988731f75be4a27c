"""A part: a sealed file with rows of the output. Its name, and the account in its footer. It knows no task."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchloom.pipelines.counts import Counts, PartRecord
from batchloom.pipelines.ledger.sealed import Sealed, footer_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.records import from_json
from batchloom.pipelines.selection.mask import Mask

TOKEN_COUNTS = ("num_input_tokens", "num_output_tokens", "num_truncated_tokens")


@dataclass(frozen=True)
class Footer:
    """What a part says of itself, in agreement with its name and with Parquet's own count of rows."""

    record: PartRecord
    """Without `sha256`, where only the footer was read."""
    fingerprint: str
    chosen: Mask | None = None
    """Which rows of the input have one in the part; None where all have."""


@dataclass(frozen=True, kw_only=True)
class _Account:
    """A footer as it is written."""

    spans: tuple[tuple[Any, ...], ...]
    fingerprint: str
    layout: str
    version: str
    """Of batchloom."""
    counts: Counts


def is_part_name(name: str) -> bool:
    """Return whether a file's name has the form of a part's."""
    return re.fullmatch(r"part-[^/]*-[0-9a-f]{12}-[0-9a-f]{8}\.parquet", name) is not None


def footer_for(
    spans: Iterable[Span],
    counts: Mapping[str, Any],
    fingerprint: str,
    layout: str,
    version: str,
    chosen: Mask | None = None,
) -> dict[str, Any]:
    """Return what a part's footer says, as JSON values. `counts`: those of Counts; `chosen` of the spans' rows."""
    return {
        "spans": [[span.shard, span.identity, span.start, span.stop] for span in spans],
        "fingerprint": fingerprint,
        "layout": layout,
        "version": version,
        "counts": dict(counts),
        **({} if chosen is None else {"chosen": asdict(chosen)}),
    }


def chosen_of(footer: Mapping[str, Any], num_rows: int) -> Mask | None:
    """Return which of so many rows have one in a file, by its footer; None where all have. Raises: ValueError where the
    footer has no such mask."""
    if footer.get("chosen") is None:
        return None
    chosen = from_json(Mask, footer["chosen"])
    if len(chosen.flags) != num_rows:
        raise ValueError(f"its mask of chosen rows is one of {chosen.num_rows} rows, and the file's are {num_rows}")
    return chosen


def counts_of(part: pa.Table) -> dict[str, Any]:
    """Return a part's figures, counted from its columns: those of Counts that columns tell."""
    kinds = pc.value_counts(pc.struct_field(part["error"], "kind").drop_null()).to_pylist()
    tokens = {name: pc.sum(part[name]).as_py() or 0 for name in TOKEN_COUNTS}
    by_kind = {found["values"]: found["counts"] for found in kinds}
    errors = {"num_errors": sum(by_kind.values()), "errors_by_kind": dict(sorted(by_kind.items()))}
    return {"num_rows": len(part), **tokens, **errors}


def read_part(name: str, content: bytes) -> Footer:
    """Return the footer of a part after a check of all of its bytes. Raises: ValueError where it is not whole."""
    file = Sealed.of(content)
    return _footer(name, len(content), file.sha256, file.footer, file.metadata.num_rows)


def read_footer(name: str, size: int, metadata: pq.FileMetaData) -> Footer:
    """Return what a part's footer says. `size`: bytes of the file.

    Raises: ValueError where there is no account in it, or another one than its name and Parquet's rows tell.
    """
    return _footer(name, size, "", footer_of(metadata), metadata.num_rows)


def _footer(name: str, size: int, sha256: str, values: Mapping[str, Any], num_rows: int) -> Footer:
    try:
        account = from_json(_Account, values)
        spans = tuple(_span(fields) for fields in account.spans)
        chosen = chosen_of(values, Part(spans).num_rows)
    except ValueError as error:
        raise ValueError(f"its footer's record is wrong: {error}") from error
    num_chosen = Part(spans).num_rows if chosen is None else chosen.num_chosen
    for problem in _contradictions(name, spans, account, num_rows, num_chosen):
        raise ValueError(problem)
    record = PartRecord(
        **vars(account.counts), part=name, spans=spans, layout=account.layout, bytes=size, sha256=sha256
    )
    return Footer(record, account.fingerprint, chosen)


def _span(fields: Sequence[Any]) -> Span:
    if list(map(type, fields)) != [str, str, int, int] or not 0 <= fields[2] < fields[3]:
        raise ValueError(f"{list(fields)} is no span of rows")
    return Span(*fields)


def _contradictions(
    name: str, spans: tuple[Span, ...], account: _Account, num_rows: int, num_chosen: int
) -> Iterator[str]:
    part = Part(spans)
    if not spans:
        yield "its footer names no rows"
    elif part.name(account.fingerprint) != name:
        yield f"its footer is that of {part.name(account.fingerprint)}"
    elif not num_chosen == account.counts.num_rows == num_rows:
        yield f"it has {num_rows} rows, and by its footer {account.counts.num_rows}, for {num_chosen} rows of input"
