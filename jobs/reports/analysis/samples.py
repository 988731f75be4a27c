"""Samples are some rows of an output as a person reads them: the input, the answer or the error, what is beside."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import pyarrow.compute as pc

from batchloom.jobs.reports import wording
from batchloom.jobs.reports.analysis.inputs import Asked, asked_of
from batchloom.jobs.reports.analysis.scan import Place, Scan
from batchloom.jobs.reports.blocks import Sample, Samples
from batchloom.jobs.reports.view import Row, View, rows_of, spread
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger.part_files import PartFile

NUM_ROWS = 8  # answered ones
NUM_PARTS = 4  # that they are of
FIRST_ROWS = 256  # of a part, among which they are chosen: not all of it has to be read
MAX_KINDS = 8  # of errors
MAX_CHARACTERS = 700  # of a text
MAX_BESIDE = 160  # of a value that stands beside
MAX_ITEMS = 12  # of a list
MAX_NUMBERS = 8  # of a vector
LEDGER = tuple(field.name for field in LEDGER_FIELDS)


def samples_of(view: View, config: InputConfig | None, scan: Scan) -> tuple[Samples, Samples]:
    """Return some answered rows, and some with errors of each kind. `config`: of the input, to read it."""
    answered = _answered(view)
    kinds = sorted(scan.places, key=lambda kind: (-scan.errors[kind], kind))[:MAX_KINDS]
    wrong = _at(view, [place for kind in kinds for place in scan.places[kind]])
    asked, why = asked_of(view, config, [*answered, *wrong])
    note = f"Without their input: {why.rstrip('.')}." if why else ""
    told = [_sample(view, *one, own) for one, own in zip([*answered, *wrong], asked, strict=True)]
    return (
        Samples("Some rows", tuple(told[: len(answered)]), note),
        Samples("Rows with errors, by kind", tuple(told[len(answered) :]), note),
    )


def _answered(view: View) -> list[tuple[Place, Row]]:
    """Return answered rows among the first of parts that are spread over the output."""
    records = spread(view.records, NUM_PARTS)
    rows = []
    for number, record in enumerate(records):
        share = NUM_ROWS // len(records) + (number < NUM_ROWS % len(records))
        chosen = view.read(record.part, lambda part, share=share: _some_answered(part, share))  # type: ignore[misc]
        rows += [(Place(record, number), row) for number, row in chosen or ()]
    return rows


def _some_answered(part: PartFile, most: int) -> list[tuple[int, Row]]:
    """Return at most `most` answered rows among the first of a part, evenly spaced, with their numbers."""
    table = part.first_rows(FIRST_ROWS)
    if not table.num_rows:  # no columns either, where it is JSON Lines
        return []
    good: list[int] = pc.indices_nonzero(pc.is_null(table["error"])).to_pylist()
    num_chosen = min(most, len(good))
    chosen = [good[index * len(good) // num_chosen] for index in range(num_chosen)]
    return list(zip(chosen, rows_of(table.take(chosen)), strict=True))


def _at(view: View, places: Sequence[Place]) -> list[tuple[Place, Row]]:
    """Return the rows at these places, in their order."""
    found: dict[tuple[str, int], Row] = {}
    for record in {place.record.part: place.record for place in places}.values():
        numbers = sorted({place.row for place in places if place.record.part == record.part})
        rows = view.read(record.part, lambda part, numbers=numbers: list(_rows(part, numbers)))  # type: ignore[misc]
        found |= {(record.part, number): row for number, row in zip(numbers, rows or (), strict=False)}
    keys = [(place, (place.record.part, place.row)) for place in places]
    return [(place, found[key]) for place, key in keys if key in found]


def _rows(part: PartFile, numbers: Sequence[int]) -> Iterator[Row]:
    """Yield the rows of a part that have these numbers, which ascend. Nothing behind the last is read."""
    left, start = list(numbers), 0
    for table in part.tables():
        own = [number - start for number in left if number < start + table.num_rows]
        yield from rows_of(table.take(own)) if own else ()
        left, start = left[len(own) :], start + table.num_rows
        if not left:
            return


def _sample(view: View, place: Place, row: Row, asked: Asked | None) -> Sample:
    task, kept, error = view.job["task"], set(view.kept_columns), row.get("error")
    shown = set(asked or ())
    beside = {name: cut(wording.value(row[name]), MAX_BESIDE) for name in row if name in kept - shown}
    counts = {name: row.get(f"num_{name}_tokens") for name in ("input", "output", "truncated")}
    tokens = ", ".join(f"{count:,} {_MEANING[name]}" for name, count in counts.items() if count)
    own = {name: value for name, value in row.items() if name not in kept and name not in LEDGER}
    return Sample(
        title=_title(place.record, place.row),
        asked={name: cut(text_of(value)) for name, value in (asked or {}).items()},
        answered={} if error else {name: cut(text) for name, text in answer_words(task, own).items()},
        beside=beside | ({"tokens": tokens} if tokens else {}),
        error=f"{error['kind']}: {error['message']}" if error else "",
    )


_MEANING = {"input": "read", "output": "written", "truncated": "cut off"}


def _title(record: PartRecord, row: int) -> str:
    return f"row {row + 1:,} of {record.part}"


def answer_words(task: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row's answer as a person reads it, by column."""
    match row:
        case {"labels": list(labels), "scores": list(scores)}:
            pairs = [f"{label} {score:.3f}" for label, score in zip(labels, scores, strict=True)]
            above = {"labels above": ", ".join(row["labels_above"])} if row.get("labels_above") is not None else {}
            return {"labels": _some(pairs), **above}
        case {"label": _, "scores": list(scores)}:
            return {"labels": _some([f"{one['label']} {one['score']:.3f}" for one in scores])}
        case {"entities": list(entities)}:
            words = [f"{one['word']} ({one['entity_group']} {one['score']:.3f})" for one in entities]
            return {"entities": _some(words) or "(none)"}
        case {"fills": list(fills)}:
            return {"fills": _some([_fill(one) for one in fills])}
        case _ if task == "feature-extraction":
            return {name: text_of(value) if name == "tokens" else _numbers(value) for name, value in row.items()}
        case {"answer": str(answer), "score": float(score)} if task == "question-answering":
            return {"answer": answer or "(no answer)", "score": f"{score:.3f}"}
    return {name: text_of(value) for name, value in row.items() if not name.startswith("token_log_")}


def _fill(fill: Mapping[str, Any]) -> str:
    return f"{fill['token_str']} {fill['score']:.3f}" if fill.get("token_str") is not None else str(fill["sequence"])


def _numbers(held: list[Any]) -> str:
    """Format a vector, or lists of vectors, by its shape and its first numbers."""
    shape, first = [len(held)], held
    while first and isinstance(first[0], list):
        first = first[0]
        shape.append(len(first))
    words = [f"{value:.4f}" for value in first[:MAX_NUMBERS]]
    more = ["…"] if prod(shape) > MAX_NUMBERS else []
    return f"{' x '.join(f'{size:,}' for size in shape)} numbers: {', '.join([*words, *more])}"


def _some(words: Sequence[str]) -> str:
    rest = len(words) - MAX_ITEMS
    return ", ".join([*words[:MAX_ITEMS], *([f"{rest:,} more"] if rest > 0 else [])])


def text_of(value: Any) -> str:
    """Return a value as text, with its lines: of lists an item a line."""
    match value:
        case None:
            return "(null)"
        case str():
            return value
        case list() if value and all(isinstance(item, str) for item in value):
            return "\n".join(f"- {item}" for item in value)
    return wording.value(value)


def cut(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return a text of at most so many characters, and how many it had."""
    return text if len(text) <= most else f"{text[:most].rstrip()}… ({len(text):,} characters)"
