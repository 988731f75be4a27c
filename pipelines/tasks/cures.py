"""Cures: what a user can do about rows with errors. It knows no rows and no job."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from batchloom.pipelines.errors import ADVICE


@dataclass(frozen=True)
class Cure:
    """An option of a task that answers rows with one kind of error, and decides nothing about any other row."""

    kind: str
    option: str
    before: str
    """Its value where such rows are errors: the default."""
    value: str
    """One that answers them."""
    others: tuple[str, ...] = ()
    """Options that decide nothing before."""


CUT = Cure("too_long", "truncation", "error", "right")
"""For tasks to which a longer input is an error."""


def own_options(cures: Iterable[Cure], kinds: Collection[str], options: Mapping[str, Any]) -> set[str]:
    """Return the options that concern only rows with errors of these kinds (none: of all), where `options` are set."""
    fitting = (one for one in cures if (not kinds or one.kind in kinds) and options.get(one.option) == one.before)
    return {name for one in fitting for name in (one.option, *one.others)}


def advice(errors_by_kind: Mapping[str, int], cures: Iterable[Cure], options: Mapping[str, Any]) -> str | None:
    """Return what to do about the most frequent kind of error, of equally frequent ones about one that an option cures;
    None where there is no error.

    `options`: the task's settings, defaults included: what an option is by default may depend on the checkpoint.
    """
    open_cures = {one.kind: one for one in cures if options.get(one.option, one.before) == one.before}
    counts = sorted((-count, kind not in open_cures, kind) for kind, count in errors_by_kind.items() if count > 0)
    if not counts:
        return None
    *_, kind = counts[0]
    if (cure := open_cures.get(kind)) is not None:
        return (
            f"{kind}: run the same command with --retry-errors={kind} --set task_options.{cure.option}={cure.value}, "
            "which computes these rows alone."
        )
    return f"{kind}: {ADVICE.get(kind, 'the column error says more')}."
