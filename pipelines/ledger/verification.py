"""Recount a finished output: every input row in exactly one part, every part as it was written.

Names, sizes, versions, records, manifest and inputs are held against each other: none is believed alone. A part whose
version is not the one of its record is read whole, and all of them where that is asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from batchloom.models.redaction import redacted
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import ConfigError, InputError, NoInputError, OutputError, StoreError
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.ledger import ledger
from batchloom.pipelines.ledger.manifest import Manifest
from batchloom.pipelines.ledger.part_files import PartFile
from batchloom.pipelines.ledger.parts import counts_of, is_part_name
from batchloom.pipelines.planning.fingerprint import fingerprint
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.limit import limited, selected, words_for_left_out
from batchloom.pipelines.planning.shards import Shard, find_shards
from batchloom.pipelines.planning.spans import Coverage, Span
from batchloom.pipelines.records import from_json
from batchloom.pipelines.selection.selection import Selection
from batchloom.pipelines.stores.storage import Store, absolute

STRANGE = "it is in the output and not in the manifest"
GONE = "are not there any more"
UNREADABLE = "input: cannot be recounted."
Check = Callable[[Store, str, Sequence[PartRecord]], list[str]]
"""Reads parts whole, with the fingerprint that they should have, and returns what is wrong with them."""


@dataclass(frozen=True)
class Verification:
    """The counts, and every mismatch found."""

    num_parts: int
    num_rows: int
    """Rows in parts that exist and are intact."""
    num_input_rows: int | None
    """Rows in the input as it is now; None where it could not be read."""
    num_errors: int
    """Error rows in those parts."""
    num_left_out: int = 0
    """Rows of the input that the job's selection leaves out, by the parts that cover them and the names of the files
    that none covers."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What cannot be compared and is no problem: answers to inputs that were deleted, under `input.missing: keep`."""

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def advice(self) -> list[str]:
        """What to do about the problems."""
        strange = [problem for problem in self.problems if problem.endswith(STRANGE)]
        gone = [problem for problem in self.problems if problem.endswith(GONE) or problem.startswith(UNREADABLE)]
        words = {
            "Move files that are not in the manifest out of the folder.": strange,
            "Bring input files back that are gone or cannot be read; input.missing: keep does without them.": gone,
            "Run the job again: it computes what is missing, cut or altered, and keeps the rest.": [
                problem for problem in self.problems if problem not in [*strange, *gone]
            ],
        }
        return [sentence for sentence, problems in words.items() if problems]


def verify(
    output: str,
    storage_options: Mapping[str, Any] | None = None,
    given: InputConfig | None = None,
    deep: Check | None = None,
) -> Verification:
    """Recount a finished output against its manifest and against its input.

    `storage_options` open the output, and the input, for which they complete those in the manifest, which has no
    credentials. `given`: the input as the job file has it, with them. `deep`: reads every part whole, such as
    `pipelines.deep_check`; None reads those alone that do not have the version of their record.

    Raises: OutputError where there is no manifest to verify against, or it is damaged.
    """
    store = Store(output, storage_options or {})
    found = ledger.look(store)
    manifest = ledger.read_manifest(store)
    if manifest is None:
        raise OutputError(f"{output} {_why_no_manifest(found)}")
    config = _input_of(store, manifest, storage_options or {}, given)
    missing = {record.part: record for record in manifest.parts if record.part not in found.parts}
    odd = [record for record in ledger.changed(manifest.parts, found) if record.part not in missing]
    wrong = _check_sizes(odd, found)
    doubted = [record for record in odd if record.part not in wrong]
    if deep is not None:
        doubted = [record for record in manifest.parts if record.part not in missing and record.part not in wrong]
    wrong |= _by_part((deep or read_in_threads)(store, manifest.fingerprint, doubted))
    bad = [record for record in manifest.parts if record.part in missing or record.part in wrong]
    num_left_out = manifest.totals["left_out"]
    num_input_rows, input_problems, notes = _check_input(manifest, config, KeptFooters(store, None))
    return Verification(
        num_parts=len(manifest.parts),
        num_rows=manifest.parts.totals()["rows"] - sum(record.num_rows for record in bad),
        num_input_rows=num_input_rows,
        num_errors=manifest.parts.totals()["errors"] - sum(record.num_errors for record in bad),
        num_left_out=num_left_out - sum(record.num_covered - record.num_rows for record in bad),
        problems=[
            *(f"{name}: its seal is missing, {seal}" for name, seal in ledger.without_account(manifest.parts, found)),
            *(f"{one.part}: it is missing ({one.num_rows} rows of {_first(one.spans)})" for one in missing.values()),
            *(problem for problems in wrong.values() for problem in problems),
            *_check_names(manifest, found),
            *_check_totals(manifest),
            *input_problems,
        ],
        notes=notes,
    )


def _first(spans: Sequence[Span]) -> str:
    more = len({span.shard for span in spans}) - 1
    return f"{spans[0].shard} and {more} more" if more else spans[0].shard


def _by_part(problems: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in problems:
        found.setdefault(problem.partition(": ")[0], []).append(problem)
    return found


def _check_sizes(records: Iterable[PartRecord], found: ledger.Found) -> dict[str, list[str]]:
    return {
        record.part: [f"{record.part}: it has {found.parts[record.part].size} bytes, and {record.bytes} were written"]
        for record in records
        if found.parts[record.part].size != record.bytes
    }


def _why_no_manifest(found: ledger.Found) -> str:
    parts = [name for name in found.parts if is_part_name(name)]
    if found.job is None and not parts:
        return f"holds no batchloom output.{ledger.deeper(found)}"
    return f"is not finished: {len(parts)} parts and no manifest. Run the job again; it goes on where it stopped."


def _input_of(
    store: Store, manifest: Manifest, storage_options: Mapping[str, Any], given: InputConfig | None
) -> InputConfig:
    """Return the input that the manifest's job names, with the credentials of the given one where that is the same.

    Raises: OutputError where it is none.
    """
    try:
        config = from_json(InputConfig, manifest.job.get("input"))
        if not config.paths:
            raise ValueError("it has no paths")
    except ValueError as error:
        raise OutputError(
            f"{store.path(ledger.MANIFEST)} is not as batchloom wrote it: job.input: {error}. Run the job again: it "
            "keeps what is done, and writes the manifest anew."
        ) from error
    options = {**config.storage_options, **storage_options}
    paths = () if given is None else tuple(absolute(path) for path in given.paths)
    if given is not None and tuple(map(redacted, paths)) == config.paths:
        return replace(config, paths=paths, storage_options={**options, **given.storage_options})
    return replace(config, storage_options=options)


def read_in_threads(store: Store, expected: str, records: Sequence[PartRecord]) -> list[str]:
    """Return what is wrong with these parts, from their own bytes. `expected`: their fingerprint."""
    with ThreadPoolExecutor(ledger.READ_THREADS) as pool:
        checked = pool.map(lambda record: list(_check_part(store, expected, record)), records)
        return [problem for problems in checked for problem in problems]


def _check_part(store: Store, expected: str, record: PartRecord) -> Iterator[str]:
    try:
        whole = PartFile.of(store, record.part).whole()
        counted = counts_of(whole.table(pa.schema(LEDGER_FIELDS)))
    except FileNotFoundError:
        yield f"{record.part}: it is missing ({record.num_rows} rows of {_first(record.spans)})"
        return
    except StoreError as error:  # a folder of that name, or a store that does not give it
        yield f"{record.part}: it cannot be read. {error}"
        return
    except (ValueError, KeyError, pa.ArrowException, OSError) as error:
        yield f"{record.part}: {error}"
        return
    part = whole.footer
    if part.record.sha256 != record.sha256:
        yield f"{record.part}: its bytes are not the ones that were written"
        return
    for name, value in counted.items():
        if getattr(part.record, name) != value:
            yield f"{record.part}: {name} is {value} in its rows, and {getattr(part.record, name)} in its footer"
    if part.record != record:
        yield f"{record.part}: its footer tells of other figures than the manifest"
    if part.fingerprint != expected:
        yield f"{record.part}: it belongs to another fingerprint than {expected[:8]}"


def _check_names(manifest: Manifest, found: ledger.Found) -> Iterator[str]:
    """Yield files that are no part of the manifest, and parts that it names twice."""
    named = Counter(manifest.parts.table["part"].to_pylist())
    for name in sorted({*found.parts, *found.others} - set(named)):
        yield f"{name}: {STRANGE}"
    for name, count in named.items():
        if count > 1:
            yield f"manifest: it names {name} {count} times"


def _check_totals(manifest: Manifest) -> Iterator[str]:
    for name, value in manifest.parts.totals().items():
        if name not in ("shards", "left_out") and manifest.totals.get(name) != value:  # parts do not count empty shards
            yield f"manifest: totals.{name} is {manifest.totals.get(name)}, and its parts sum to {value}"
    for name, counts in (
        ("errors_by_kind", manifest.parts.errors_by_kind()),
        ("degenerate", manifest.parts.degenerate()),
    ):
        if getattr(manifest, name) != counts:
            yield f"manifest: {name} is {dict(getattr(manifest, name))}, and its parts sum to {counts}"
    for name in ("fingerprint", "layout"):
        hashed = fingerprint(getattr(manifest, f"{name}_of"))
        if not hashed.startswith(getattr(manifest, name) or "-"):
            yield f"manifest: its {name} is not that of {name}_of"
    if odd := [record.part for record in manifest.parts if record.layout != manifest.layout]:
        yield f"manifest: {len(odd)} parts are of another layout ({ledger.some(odd)})"


def _check_input(
    manifest: Manifest, config: InputConfig, footers: KeptFooters
) -> tuple[int | None, list[str], list[str]]:
    """Return the rows of the input as it is now, where its rows and those of parts do not correspond, and what
    cannot be compared because an input was deleted and its answers are kept."""
    try:
        found, _ = find_shards(config, kept=footers)
    except (InputError, StoreError) as error:
        gone = [f"{UNREADABLE} {error}"]
        are_kept = config.missing == "keep" and isinstance(error, NoInputError)
        return None, [] if are_kept else gone, gone if are_kept else []
    looked_at, left_out = limited(found, config.limit), words_for_left_out(found, config.limit)
    try:
        selection = Selection.of(config)
    except ConfigError as error:
        return None, [f"manifest: job.input.where is not as batchloom wrote it. {error}"], []
    shards = selected(looked_at, selection)
    num_input_rows = sum(shard.num_rows for shard in looked_at)
    present = {shard.name: shard for shard in shards}
    coverage, problems, kept = Coverage(), [], Counter[str]()
    for part, spans in zip(manifest.parts.table["part"].to_pylist(), manifest.parts.spans(), strict=True):
        for span in spans:
            shard = present.get(span.shard)
            if shard is not None and (shard.source.identity != span.identity or span.stop > shard.num_rows):
                problems.append(f"input: rows {span.start} to {span.stop} of {span.shard} are not there as they were")
            elif shard is None and config.missing == "error":
                problems.append(f"input: rows {span.start} to {span.stop} of {span.shard} {GONE}")
            elif not coverage.add(span):
                problems.append(f"{part}: it holds rows of {span.shard} that another part holds as well")
            elif shard is None:
                kept[span.shard] += span.num_rows
    problems += _without_part(shards, coverage)
    problems += _left_out(manifest, selection, num_input_rows - sum(shard.num_rows for shard in shards))
    notes = [note for note in (left_out, found[0].format.news) if note]
    notes += [
        f"{shard} was deleted: the answers to {num_rows} of its rows are kept, and whether it had more cannot be told "
        "any more"
        for shard, num_rows in kept.items()
    ]
    return num_input_rows, problems, notes


def _left_out(manifest: Manifest, selection: Selection, num_excluded: int) -> Iterator[str]:
    """Yield where the counts of rows that are left out do not add up. `num_excluded`: those of whole files."""
    told, in_parts = manifest.totals["left_out"], manifest.parts.totals()["left_out"]
    if told != in_parts + num_excluded:
        yield (
            f"manifest: totals.left_out is {told}; its parts leave out {in_parts} rows, and {num_excluded} are in "
            "files that their partitions leave out"
        )
    if in_parts and not selection:
        yield f"manifest: its parts leave out {in_parts} rows, and the job has no selection"


def _without_part(shards: Iterable[Shard], coverage: Coverage) -> Iterator[str]:
    for shard in shards:
        for start, stop in coverage.missing(Span(shard.name, shard.source.identity, 0, shard.num_rows)):
            yield f"input: rows {start} to {stop} of {shard.name} have no part (is the file new, or has it changed?)"
