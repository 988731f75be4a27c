"""Whose the files of an output folder are: this job's, another configuration's, or a stranger's. It changes nothing.

A part says by its name and its footer whose it is. Files of anybody else block a job at its start and at its end, and
verify names them: readers open the folder as it stands, and would fail at them or take their rows for answers.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from batchloom.pipelines.errors import JobError, OutputError, failing_as
from batchloom.pipelines.ledger.ledger import READ_THREADS, Found, some
from batchloom.pipelines.ledger.part_files import SEALS
from batchloom.pipelines.ledger.parts import ending_of, is_part_name, key_of, mark_of
from batchloom.pipelines.ledger.register import Register
from batchloom.pipelines.ledger.sealed import FOOTER_KEY
from batchloom.pipelines.planning.fingerprint import differences
from batchloom.pipelines.planning.job_plan import JobPlan
from batchloom.pipelines.planning.spans import Coverage
from batchloom.pipelines.stores.storage import Store


def strangers(found: Found) -> list[str]:
    """Return the files that have no part's name."""
    return sorted([*found.others, *(name for name in found.parts if not is_part_name(name))])


def refuse_foreign(job: JobPlan, found: Found) -> None:
    """Raises: OutputError where the output holds files that are not the job's and that its mode does not permit."""
    store, mode = job.output, job.config.output.mode
    held = sorted([*found.parts, *found.others])
    if held and mode == "error":
        raise OutputError(
            f"Output {store.url} is not empty ({some(held)}) and output.mode is error. "
            "Choose an empty folder, or output.mode: resume or overwrite."
        )
    _refuse_strangers(store, strangers(found))
    if mode == "overwrite":
        _refuse_strangers(store, _without_record(store, found))
        return
    others = sorted(name for name in found.parts if mark_of(name) != job.fingerprint[:8])
    if others:
        raise OutputError(_another_configuration(job, found, others))


def refuse_company(job: JobPlan, found: Found, ours: Iterable[str]) -> None:
    """Check, at the end, that nobody else has written to the output while the job ran. `ours`: the job's parts.

    Raises: JobError where it holds other files.
    """
    if strange := strangers(found):
        raise JobError(_stranger_message(job.output, strange) + " Then run this job again: it is closed at once.")
    foreign = sorted(set(found.parts) - set(ours))
    if foreign:
        kinds = ", ".join(sorted({f"*-{mark_of(name)}{ending_of(name)}" for name in foreign}))
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
        "them for answers or fail at them, and output.mode: overwrite does not remove them either. Move them away; "
        "what begins with an underscore and does not end in .parquet or .jsonl may stay."
    )


def _another_configuration(job: JobPlan, found: Found, others: Sequence[str]) -> str:
    before = found.job
    if before is not None and any(mark_of(name) == before.fingerprint[:8] for name in others):
        differing = "".join(f"  {line}\n" for line in differences(before.fingerprint_of, job.fingerprint_of))
    else:
        own = f"-{job.fingerprint[:8]}{job.config.output.ending}"
        differing = f"  {len(others)} parts ({some(others)}), and this job's end in {own}\n"
    return (
        f"Output {job.output.url} belongs to another configuration:\n{differing}"
        "Change the job file back, choose another output.path, or set output.mode: overwrite."
    )


def refuse_mixture(job: JobPlan, register: Register) -> Coverage:
    """Return which rows the parts that are there hold, after a comparison with the input as it is.

    Raises: OutputError where answers would be mixed that belong to inputs that are gone or have changed, or where two
    parts hold the same rows.
    """
    changed, gone, twice = dict[str, str](), dict[str, str](), set[str]()  # of parts, the first shard
    coverage = Coverage()
    for name, spans in zip(register.table["part"].to_pylist(), register.spans(), strict=True):
        for span in spans:
            shard = job.shards_by_name.get(span.shard)
            if shard is None:
                gone.setdefault(name, span.shard)
            elif shard.source.identity != span.identity:
                changed.setdefault(name, span.shard)
            elif not coverage.add(span):
                twice.add(name)
    if changed:
        raise OutputError(_no_mixture(job, changed, "have changed", "Put the inputs back"))
    if gone and job.config.input.missing == "error":
        remedy = "Put the inputs back, set input.missing: keep to keep the answers of inputs that were deleted"
        raise OutputError(_no_mixture(job, gone, "are gone", remedy))
    if twice:
        raise OutputError(
            f"Output {job.output.url} holds rows twice: {len(twice)} parts ({some(sorted(twice))}) have rows that "
            "other parts have as well, as after two jobs that ran at the same time. Remove these parts and run the job "
            "again."
        )
    return coverage


def _no_mixture(job: JobPlan, shard_of: Mapping[str, str], what: str, remedy: str) -> str:
    """`shard_of`: an input that is gone or has changed, of each part that holds rows of one."""
    return (
        f"Output {job.output.url} holds answers to inputs that {what} since: {some(sorted(set(shard_of.values())))} "
        f"(parts: {len(shard_of)}). Resuming would mix old answers with new ones. "
        f"{remedy}, choose another output.path, or set output.mode: overwrite."
    )


def _without_record(store: Store, found: Found) -> list[str]:
    """Return the readable files among those with a part's name that have no record of ours."""
    names = sorted(found.parts)
    sealed = {name.removeprefix(f"{SEALS}/").partition("/")[0] for name in found.seals}

    def is_without(name: str) -> bool:
        if not name.endswith(".parquet"):
            return key_of(name) not in sealed
        with store.open(name) as file:
            try:
                metadata = pq.read_metadata(file)
            except (pa.ArrowException, OSError):
                if file.failure is not None:
                    raise file.failure from None
                return False
        return FOOTER_KEY not in (metadata.metadata or {})

    with failing_as(f"Reading footers of {store.url}"), ThreadPoolExecutor(READ_THREADS) as pool:
        return [name for name, without in zip(names, pool.map(is_without, names), strict=True) if without]
