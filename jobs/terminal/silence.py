"""Format what a job says while no part is finished: what is waited for, and which replicas were started again."""

from collections.abc import Sequence

from batchloom.jobs.reports import wording
from batchloom.pipelines.metrics import ReplicaEnded, ReplicaSight, Waiting

MAX_NAMED = 3  # replicas, units of one, parts


def waiting(event: Waiting) -> str:
    """Format a silence: since when, what each replica does, how many there are, and what the cluster lacks."""
    if event.seconds_left is not None:
        return _waiting_for_a_node(event, event.seconds_left)
    quiet = f"No part was finished for {wording.duration(event.seconds)}."
    if event.assembling:
        return f"{quiet} All rows are computed; parts are assembled: {_named(event.assembling)}."
    alive = [replica for replica in event.replicas if replica.is_alive]
    missing = event.num_replicas - len(alive)  # a pool that has grown has more than the job starts with
    words = [quiet]
    busy = [replica for replica in event.replicas if replica.units or not replica.is_ready]
    words += [f"{_replica(replica)}." for replica in busy[:MAX_NAMED]]
    if len(busy) > MAX_NAMED:
        words.append(f"{len(busy) - MAX_NAMED} more replicas are at work.")
    if not event.replicas:
        words.append("No replica is there yet: Ray starts its process, and before it the environment of shipped code.")
    elif not busy:
        words.append("No replica computes: input is read or tokenized, or parts are written.")
    if missing > 0:
        words.append(f"{len(alive)} of {event.num_replicas:,} replicas alive, {missing} pending or starting again.")
    else:
        words.append(f"{wording.plural(len(alive), 'replica')} alive.")
    words += _sentences(event.lacking)
    return " ".join(words)


def replica_ended(event: ReplicaEnded) -> str:
    """Format what the watchdog did."""
    units = f" {_named(event.units)} will be computed again." if event.units else ""
    return f"The replica on {event.node} (process {event.process_id}) was ended, as {event.reason}.{units}"


def _waiting_for_a_node(event: Waiting, seconds_left: float) -> str:
    had = [f"{_replica(replica)}." for replica in event.replicas if replica.units]
    use = "assemble parts: all rows are computed" if event.assembling else "hold a replica"
    words = [f"Waiting for a node that can {use}.", *_sentences(event.lacking), *had[:MAX_NAMED]]
    return f"{' '.join(words)} The job fails in {wording.duration(seconds_left)} (engine.replicas.wait_minutes)."


def _sentences(words: Sequence[str]) -> list[str]:
    return [f"{word[0].upper()}{word[1:]}." for word in words]


def _replica(replica: ReplicaSight) -> str:
    where = f"Process {replica.process_id} on {replica.node}" if replica.node else "A replica whose node is gone"
    if not replica.is_alive and replica.node:
        where += f", silent for {wording.duration(replica.heard_seconds)},"
    if not replica.is_ready:
        return f"{where} loads the model"
    if not replica.units:
        return f"{where} has no work"
    units = f"{_named(replica.units)} since {wording.duration(replica.unit_seconds)}"
    if not replica.is_alive:
        return f"{where} had {units}"
    return f"{where} computes {units}, last step {wording.duration(replica.progress_seconds)} ago"


def _named(units: Sequence[str]) -> str:
    more = f" and {len(units) - MAX_NAMED} more" if len(units) > MAX_NAMED else ""
    return ", ".join(units[:MAX_NAMED]) + more
