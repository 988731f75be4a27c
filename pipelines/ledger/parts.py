"""A part: a file with rows of the output. Its name, and the account that a seal covers. It knows no task."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.columns.partition_by import partition_folder
from batchloom.pipelines.counts import Counts, PartRecord
from batchloom.pipelines.ledger.sealed import Sealed, footer_of
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Part
from batchloom.pipelines.records import from_json
from batchloom.pipelines.selection.mask import Mask

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
"""Of parts; readers take other files that end so for parts."""
_NAME = re.compile(r"(?:[^/=]+=[^/]*/)*part-[^/]*-([0-9a-f]{12}-([0-9a-f]{8}))(\.parquet|\.jsonl(?:\.gz|\.zst)?)")
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
    partition_by: tuple[str, ...] = ()
    ending: str = ".parquet"
    """Of the file's name. Parquet is Parquet, and says nothing."""
    counts: Counts


def is_part_name(name: str) -> bool:
    """Return whether a file's name, below its output folder, has the form of a part's."""
    return _NAME.fullmatch(name) is not None


def key_of(name: str) -> str:
    """Return what tells which rows of which job a part has, whatever it is written as; empty for a stranger's file."""
    match = _NAME.fullmatch(name)
    return match[1] if match else ""


def mark_of(name: str) -> str:
    """Return what all parts of one job have in their names; empty for a stranger's file."""
    match = _NAME.fullmatch(name)
    return match[2] if match else ""


def ending_of(name: str) -> str:
    """Return the ending of a part's name."""
    return next(ending for ending in ENDINGS if name.endswith(ending))


def output_folder(path: str) -> str | None:
    """Return the folder of an output by the path of a part in it; None where it is no part's."""
    parts = path.split("/")
    while len(parts) > 1 and "=" in parts[-2]:
        parts[-2:] = ["/".join(parts[-2:])]
    return "/".join(parts[:-1]) if is_part_name(parts[-1]) else None


def footer_for(spans: Iterable[Span], counts: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a part's footer says, as JSON values. `counts`: those of Counts. `others`: the rest of _Account."""
    named = [[span.shard, span.identity, span.start, span.stop] for span in spans]
    return {"spans": named, "counts": dict(counts), **others}


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


def footer_of_seal(name: str, size: int, sha256: str, account: Mapping[str, Any], num_rows: int) -> Footer:
    """Return what the seal of a part of JSON Lines says, whose bytes it covers. Raises: as `read_footer`."""
    return _footer(name, size, sha256, account, num_rows, "seal")


def _footer(
    name: str, size: int, sha256: str, values: Mapping[str, Any], num_rows: int, where: str = "footer"
) -> Footer:
    try:
        account = from_json(_Account, values)
        spans = tuple(_span(fields) for fields in account.spans)
        chosen = chosen_of(values, Part(spans).num_rows)
    except ValueError as error:
        raise ValueError(f"its {where}'s record is wrong: {error}") from error
    num_chosen = Part(spans).num_rows if chosen is None else chosen.num_chosen
    for problem in _contradictions(name, spans, account, num_rows, num_chosen, where):
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
    name: str, spans: tuple[Span, ...], account: _Account, num_rows: int, num_chosen: int, where: str
) -> Iterator[str]:
    part = Part(spans)
    if not spans:
        yield f"its {where} names no rows"
    elif (own := part.name(account.fingerprint, account.ending, account.partition_by)) != name:
        yield f"its {where} is that of {own}"
    elif len({partition_folder(span.shard, account.partition_by) for span in spans}) > 1:
        yield f"its {where} names rows of several partitions"
    elif not num_chosen == account.counts.num_rows == num_rows:
        yield f"it has {num_rows} rows, and by its {where} {account.counts.num_rows}, for {num_chosen} rows of input"
