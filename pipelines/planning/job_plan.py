"""A job's plan: shards, units, columns, fingerprint. It reads nothing; planner.py makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from batchloom import models
from batchloom.models.patience import Patience
from batchloom.models.redaction import redacted_values, shareable
from batchloom.pipelines.columns.partition_by import partition_folder
from batchloom.pipelines.config import JobConfig
from batchloom.pipelines.fields import LEDGER_FIELDS
from batchloom.pipelines.formats.base import Format
from batchloom.pipelines.planning.fingerprint import as_json, fingerprint
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.limit import words_for_left_out
from batchloom.pipelines.planning.shards import Shard, keep_footers
from batchloom.pipelines.planning.units import Part, Size, num_units, parts_of
from batchloom.pipelines.selection.selection import Selection
from batchloom.pipelines.stores.storage import Store
from batchloom.pipelines.tasks import Task
from batchloom.pipelines.tasks.generating import cut_by_positions

# Rows of a part at most, where output.rows_per_part says nothing: minutes of a GPU's work, megabytes of answers.
GENERATED_ROWS, CLASSIFIED_ROWS = 1 << 14, 1 << 17
PART_BYTES = 1 << 28  # of the input's rows, not compressed: what is kept of them is in the part as well
# Of the answers of a unit, and of a part, where a task's are larger than texts: if each byte of the input were a token,
# which it hardly ever is, and in no case more than the second (a footer counts a text that is repeated once).
ANSWER_BYTES, MOST_ANSWER_BYTES = 1 << 28, 1 << 31


@dataclass(frozen=True)
class JobPlan:
    """A validated job, and everything that it will write."""

    config: JobConfig
    checkpoint: models.CheckpointInfo
    task: Task
    shards: list[Shard]
    """With the rows that are looked at."""
    schema: pa.Schema
    """The columns of the input that are used, with types that all shards share."""
    keep_columns: tuple[str, ...]
    fingerprint_of: Mapping[str, Any]
    """The components of the fingerprint: what decides an answer."""
    schemas: Sequence[pa.Schema] = field(default=(), repr=False)
    """Of each shard."""
    found: Sequence[Shard] = field(default=(), repr=False)
    """The shards with all of their rows."""
    selection: Selection = Selection()  # noqa: RUF009
    """Which of these rows are computed."""
    num_rows_excluded: int = 0
    """Of files that the selection leaves out by their Hive partitions: nobody looks at them."""
    retries: Sequence[Mapping[str, Any]] = ()
    """Other options of the task with which rows with errors were computed again."""
    footers: KeptFooters | None = field(default=None, repr=False)
    """Those that are kept in the output folder."""

    @property
    def format(self) -> Format:
        """Of all shards."""
        return self.shards[0].format

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.fingerprint_of)

    @cached_property
    def layout_of(self) -> dict[str, Any]:
        """The components of the layout: what decides a part's columns and their bytes beside the answers."""
        kept = [[name, str(self.schema.field(name).type)] for name in self.keep_columns]
        output = self.config.output
        file: dict[str, Any] = {"format": output.format, "compression": output.codec}
        if output.format == "parquet":
            file |= {"row_group_rows": output.row_group_rows, "statistics": output.statistics}
        if output.partition_by:
            file["partition_by"] = list(output.partition_by)
        return {"keep_columns": kept, **file}

    @cached_property
    def layout(self) -> str:
        return fingerprint(self.layout_of)[:16]

    @cached_property
    def shards_by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    @property
    def columns(self) -> pa.Schema:
        """Of the parts."""
        kept = [self.schema.field(name).remove_metadata() for name in self.keep_columns]
        return pa.schema([*kept, *self.task.output_fields(), *LEDGER_FIELDS])

    def name_of(self, part: Part) -> str:
        """Return the name of a part's file."""
        return part.name(self.fingerprint, self.config.output.ending, self.config.output.partition_by)

    @property
    def part_size(self) -> Size:
        """How much a part has at most."""
        by_task = GENERATED_ROWS if self.task.generation else CLASSIFIED_ROWS
        return self._with_room(Size(self.config.output.rows_per_part or by_task, PART_BYTES))

    @property
    def unit_size(self) -> Size:
        """How much a unit has at most."""
        return self._with_room(Size(self.config.input.rows_per_unit, self.config.input.max_unit_bytes))

    def _with_room(self, most: Size) -> Size:
        """Return a size whose answers are held in memory, where they are larger than texts."""
        answers = self.task.answer_size
        if answers is None:
            return most
        rows, num_bytes = MOST_ANSWER_BYTES // answers.of_row, ANSWER_BYTES // answers.of_token
        return Size(min(most.rows, max(1, rows)), min(most.bytes, max(1, num_bytes)))

    @cached_property
    def parts(self) -> list[Part]:
        """The parts of an output that begins empty, in the order of rows."""
        by_folder: dict[str, list[Shard]] = {}
        for shard in self.shards:
            folder = partition_folder(shard.name, self.config.output.partition_by)
            by_folder.setdefault(folder, []).append(shard)
        return [part for shards in by_folder.values() for part in parts_of(shards, self.part_size)]

    @cached_property
    def num_units(self) -> int:
        """Into how many units all of them are cut."""
        return sum(num_units(part, self.shards_by_name, self.unit_size) for part in self.parts)

    @property
    def generation(self) -> Mapping[str, Any]:
        """The resolved generation parameters; empty where the task generates nothing."""
        return self.task.generation

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of answers before they are computed."""
        limited_to = words_for_left_out(self.found, self.config.input.limit)
        selected = self.selection.words(self.num_rows, self.num_rows_excluded)
        cut = cut_by_positions(self.generation, self.checkpoint, self.task.num_prefix_tokens)
        notes = (*self.checkpoint.notes, cut, limited_to, selected, self.format.news)
        return tuple(note for note in notes if note)

    @property
    def footprint(self) -> models.Footprint:
        """The memory that one rank of a replica needs; for device "auto", that on a GPU."""
        engine = self.config.engine
        return models.Footprint(
            config=self.checkpoint.config,
            architecture=self.task.architecture,
            num_ranks=engine.tensor_parallel,
            dtype=self.dtype_on(engine.wanted_device),
        )

    def dtype_on(self, device: str) -> str:
        """Return the dtype that a replica computes in on "cpu" or another device."""
        if self.config.engine.dtype != "auto":
            return self.config.engine.dtype
        return "float32" if device == "cpu" else self.checkpoint.dtype

    @cached_property
    def output(self) -> Store:
        """One object, so that what the driver was permitted is known to the workers that it is sent to."""
        return Store(self.config.output.path, self.config.output.storage_options, self.patience)

    @property
    def patience(self) -> Patience:
        """How long stores are tried."""
        return Patience(self.config.limits.storage_patience)

    def keep_footers(self) -> None:
        """Write the footers of the shards to the output folder, so that the next plan need not read them."""
        if self.footers is not None:
            keep_footers(self.footers, self.config.input, self.patience, self.found, self.schemas)

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    def job_record(self) -> dict[str, Any]:
        """Return the contents of `_batchloom/job.json`, which the manifest repeats; without credentials."""
        job = as_json(asdict(self.config))
        for section in ("input", "output"):
            job[section]["storage_options"] = shareable(job[section]["storage_options"])
        job = redacted_values(job)
        return {
            "batchloom": version("batchloom"),
            "job": job,
            "fingerprint": self.fingerprint,
            "fingerprint_of": dict(self.fingerprint_of),
            "retries": tuple(self.retries),
            "layout": self.layout,
            "layout_of": self.layout_of,
        }
