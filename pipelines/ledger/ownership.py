"""Whose the files of an output folder are: this job's, another configuration's, or a stranger's. It changes nothing.

A part says by its name and its footer whose it is. Files of anybody else block a job at its start and at its end, and
verify names them: readers open the folder as it stands, and would fail at them or take their rows for answers.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.errors import JobError, OutputError, failing_as
from batchloom.pipelines.ledger.ledger import READ_THREADS, Found, some
from batchloom.pipelines.ledger.parts import FOOTER_KEY, Footer, is_part_name, read_footer
from batchloom.pipelines.planning.fingerprint import differences
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.storage import Store

ENDING = len("-00000000.parquet")  # of the end of a part's name that all parts of a job share


def strangers(found: Found) -> list[str]:
    """Return the files that have no part's name."""
    return sorted([*found.others, *(name for name in found.parts if not is_part_name(name))])


def refuse_foreign(job: JobPlan, found: Found) -> list[str]:
    """Return the parts to keep of inputs that are gone, under `input.missing: keep`, after a check of all files.

    Raises: OutputError where the output holds anything else that is not the job's and that its mode does not permit.
    """
    store, mode = job.output, job.config.output.mode
    held = sorted([*found.parts, *found.others])
    if held and mode == "error":
        raise OutputError(
            f"Output {store.url} is not empty ({some(held)}) and output.mode is error. "
            "Choose an empty folder, or output.mode: resume or overwrite."
        )
    _refuse_strangers(store, strangers(found))
    foreign = sorted(name for name in found.parts if name not in job.parts)
    if mode == "overwrite":
        _refuse_strangers(store, _without_record(store, found, foreign))
        return []
    others = [name for name in foreign if name[-ENDING:] != _ending(job)]
    if others:
        raise OutputError(_another_configuration(job, found, others))
    return _kept(job, found, foreign)


def refuse_company(job: JobPlan, found: Found, ours: Iterable[str]) -> None:
    """Check, at the end, that nobody else has written to the output while the job ran. `ours`: the job's parts.

    Raises: JobError where it holds other files.
    """
    if strange := strangers(found):
        raise JobError(_stranger_message(job.output, strange) + " Then run this job again: it is closed at once.")
    foreign = sorted(set(found.parts) - set(ours))
    if foreign:
        kinds = ", ".join(sorted({f"*{name[-ENDING:]}" for name in foreign}))
        raise JobError(
            f"Output {job.output.url} holds {len(foreign)} parts that another job wrote while this one ran ({kinds}), "
            "so rows would be there twice, and the output is not closed. Remove those parts and run this job again, or "
            "remove this job's and run the other."
        )


def _refuse_strangers(store: Store, names: Sequence[str]) -> None:
    if names:
        raise OutputError(_stranger_message(store, names) + " Or choose another output.path.")


def _stranger_message(store: Store, names: Sequence[str]) -> str:
    return (
        f"Output {store.url} holds files that no batchloom job wrote ({some(names)}). Readers of the folder would take "
        "them for answers or fail at them, and output.mode: overwrite does not remove them either. Move them away, or "
        "begin their names with an underscore, which readers skip."
    )


def _ending(job: JobPlan) -> str:
    return f"-{job.fingerprint[:8]}.parquet"


def _another_configuration(job: JobPlan, found: Found, others: Sequence[str]) -> str:
    before = found.job
    if before is not None and any(name.endswith(f"-{before.fingerprint[:8]}.parquet") for name in others):
        differing = "".join(f"  {line}\n" for line in differences(before.fingerprint_of, job.fingerprint_of))
    else:
        differing = f"  {len(others)} parts ({some(others)}), and this job's end in {_ending(job)}\n"
    return (
        f"Output {job.output.url} belongs to another configuration:\n{differing}"
        "Change the job file back, choose another output.path, or set output.mode: overwrite."
    )


def _kept(job: JobPlan, found: Found, foreign: Sequence[str]) -> list[str]:
    """Return those parts, which have this job's fingerprint and are not planned, if the job keeps them."""
    present = {shard.name for shard in job.shards}
    footers = dict(zip(foreign, _footers(job.output, found, foreign), strict=True))
    changed = [
        name for name, footer in footers.items() if not isinstance(footer, Footer) or footer.record.shard in present
    ]
    if changed:
        raise OutputError(_no_mixture(job, changed, "Put the inputs back"))
    if foreign and job.config.input.missing == "error":
        remedy = "Put the inputs back, set input.missing: keep to keep the answers of inputs that were deleted"
        raise OutputError(_no_mixture(job, foreign, remedy))
    return list(foreign)


def _no_mixture(job: JobPlan, names: Sequence[str], remedy: str) -> str:
    return (
        f"Output {job.output.url} holds {len(names)} parts of inputs that are gone or have changed since "
        f"({some(names)}). Resuming would mix old answers with new ones. "
        f"{remedy}, choose another output.path, or set output.mode: overwrite."
    )


def _without_record(store: Store, found: Found, names: Sequence[str]) -> list[str]:
    """Return the readable Parquet files among those with a part's name that have no record of ours."""
    return [
        name
        for name, footer in zip(names, _footers(store, found, names), strict=True)
        if isinstance(footer, pq.FileMetaData) and FOOTER_KEY not in (footer.metadata or {})
    ]


def _footers(store: Store, found: Found, names: Sequence[str]) -> list[Footer | pq.FileMetaData | None]:
    """Return each part's footer; Parquet's where it has no valid record, None where it is not readable as Parquet."""

    def one(name: str) -> Footer | pq.FileMetaData | None:
        with store.open(name) as file:
            try:
                metadata = pq.read_metadata(file)
            except (pa.ArrowException, OSError):
                if file.failure is not None:
                    raise file.failure from None
                return None
        try:
            return read_footer(name, found.parts[name].size, metadata)
        except ValueError:
            return metadata

    with failing_as(f"Reading footers of {store.url}"), ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(one, names))
