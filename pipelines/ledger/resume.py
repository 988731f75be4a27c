"""Resume: what of a job is done already, and what is left of each part. It reads, and changes nothing."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from batchloom.pipelines.arrow_functions import pc
from batchloom.pipelines.columns.partition_by import partition_folder
from batchloom.pipelines.counts import PartRecord
from batchloom.pipelines.errors import OutputError, failing_as
from batchloom.pipelines.fields import ERROR_FIELD
from batchloom.pipelines.ledger import ledger, ownership
from batchloom.pipelines.ledger.answers import Saved, folder_of, saved_for
from batchloom.pipelines.ledger.part_files import PartFile
from batchloom.pipelines.ledger.parts import key_of
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.spans import Coverage, Range, Span, outside
from batchloom.pipelines.planning.units import Part, Unit, units_of
from batchloom.pipelines.stores.storage import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pending:
    """A part that is to be written."""

    part: Part
    missing: tuple[Range, ...]
    """Its rows that have to be computed."""
    saved: tuple[Saved, ...] = ()
    """Files with answers to others."""
    earlier: PartRecord | None = None
    """The part as it is, which has all others."""

    def units(self, job: JobPlan) -> Iterator[Unit]:
        return units_of(self.part, self.missing, job.shards_by_name, job.unit_size)


@dataclass(frozen=True)
class Done:
    """The parts of a job that are there, and the rows that they hold."""

    register: Register
    coverage: Coverage = field(default_factory=Coverage)
    answers: Mapping[str, Iterable[str]] = field(default_factory=dict)
    """Files with answers of unfinished parts, by folder."""
    superseded: tuple[str, ...] = ()
    """Parts whose very rows another part has, as after a change of the format that was stopped."""

    @staticmethod
    def find(job: JobPlan, found: ledger.Found) -> "Done":
        """Look at the parts of an output that are this job's.

        Raises: OutputError where they are answers to other inputs, hold rows twice, or cannot be read and their rows
        are not known.
        """
        register, wrong = ledger.whole_parts(job.output, found, sorted(found.parts))
        register, superseded = _without_superseded(job, register)
        coverage = ownership.refuse_mixture(job, register)
        done = Done(register, coverage, found.answers, superseded)
        parts = [Part(record.spans) for record in done.of_another_layout(job)] if wrong else []
        written_anew = {job.name_of(part) for part in [*parts, *(one.part for one in done.pending(job) if wrong)]}
        for name, problem in wrong.items():
            if name not in written_anew:
                raise OutputError(
                    f"{job.output.path(name)}: {problem}. Which rows it held is not known, or their input is gone. Put "
                    "the part or the input back, or remove the part to go on without it."
                )
            log.warning("%s is computed again: %s", name, problem)
        return done

    def pending(self, job: JobPlan) -> Iterator[Pending]:
        """Yield what is left of the plan, in the order of rows."""
        for planned in job.parts:
            spans = tuple(
                Span(span.shard, span.identity, *rows) for span in planned.spans for rows in self.coverage.missing(span)
            )
            if spans:
                part = planned if spans == planned.spans else Part(spans)
                saved = saved_for(part, job.fingerprint, self.answers.get(folder_of(part, job.fingerprint), ()))
                missing = outside(part.num_rows, [own for one in saved for own in one.ranges])
                yield Pending(part, tuple(missing), tuple(saved))

    def of_another_layout(self, job: JobPlan) -> list[PartRecord]:
        """Return the parts whose columns are not those that the job writes."""
        is_other = pc.not_equal(self.register.table["layout"], job.layout).to_pylist()
        return [self.register[row] for row, other in enumerate(is_other) if other]


def _without_superseded(job: JobPlan, register: Register) -> tuple[Register, tuple[str, ...]]:
    """Return the parts without those whose very rows another part has, and the names of these. Of parts that differ in
    nothing but how they are written, that of the job's layout stays."""
    names, layouts = (register.table[name].to_pylist() for name in ("part", "layout"))
    stays: dict[str, int] = {}
    for row in sorted(range(len(names)), key=lambda row: layouts[row] == job.layout):
        stays[key_of(names[row])] = row
    if len(stays) == len(names):
        return register, ()
    is_kept = [stays[key_of(name)] == row for row, name in enumerate(names)]
    return register.chosen(is_kept), tuple(name for name, kept in zip(names, is_kept, strict=True) if not kept)


def rewritten(job: JobPlan, record: PartRecord, missing: Iterable[Range] = ()) -> Pending:
    """Return the part as one to be written again: with other columns, or with some rows computed anew.

    Raises: OutputError where its input is gone, or its rows are to be in several folders.
    """
    gone = sorted({span.shard for span in record.spans} - set(job.shards_by_name))
    if gone:
        raise OutputError(
            f"{record.part} has to be written again, as other columns are kept than before, or files are written in "
            f"another way, and its input is gone ({ledger.some(gone)}). Put it back, or set input.keep_columns, "
            "output.format, output.partition_by, output.compression, output.row_group_rows and output.statistics as "
            "they were."
        )
    by = job.config.output.partition_by
    if len({partition_folder(span.shard, by) for span in record.spans}) > 1:
        raise OutputError(
            f"output.partition_by: [{', '.join(by)}] is asked for, and {record.part} has rows of several of these "
            f"folders, and is not cut. Set output.partition_by as it was, choose another output.path, or set "
            "output.mode: overwrite."
        )
    return Pending(Part(record.spans), tuple(missing), earlier=record)


def rows_with_errors(store: Store, records: Iterable[PartRecord], kinds: frozenset[str]) -> list[tuple[Range, ...]]:
    """Return, for each part, which of the rows that it covers have errors of these kinds. No kinds: of all.

    Raises: StoreError.
    """

    def of(record: PartRecord) -> tuple[Range, ...]:
        with failing_as(f"Reading the errors of {record.part}"):
            file = PartFile.of(store, record.part)
            found = pc.struct_field(file.columns(pa.schema([ERROR_FIELD]))["error"], "kind").to_pylist()
            chosen = file.footer(record.bytes).chosen
        rows = [row for row, kind in enumerate(found) if kind is not None and (not kinds or kind in kinds)]
        return tuple(_ranges(rows if chosen is None else chosen.rows[rows].tolist()))

    with ThreadPoolExecutor(ledger.READ_THREADS) as pool:
        return list(pool.map(of, records))


def _ranges(rows: Iterable[int]) -> Iterator[Range]:
    """Yield ascending rows as ranges."""
    start = stop = -1
    for row in rows:
        if row != stop:
            if stop > start:
                yield start, stop
            start = row
        stop = row + 1
    if stop > start:
        yield start, stop
