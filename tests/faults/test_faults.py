"""Every kind of fault against both jobs: no row is lost, none comes twice, none is wrong, and verify knows."""

from itertools import cycle

import pytest

from tests.faults import format_faults, input_faults, output_faults, process_faults, references, store_faults
from tests.faults.table import KINDS, Where, play

MODULES = (process_faults, input_faults, output_faults, store_faults, format_faults)  # importing them fills KINDS
pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]  # each command of a round has a limit of its own


def rounds():
    """Each kind in all its states, with the two tasks in turns: every second kind has the other one first."""
    tasks = list(references.TASKS)
    for number, kind in enumerate(KINDS):
        for when, task in zip(kind.when, cycle(tasks[number % 2 :] + tasks[: number % 2]), strict=False):
            yield pytest.param(kind, when, task, id=f"{kind.name}, {when.value}, {task}")


@pytest.mark.parametrize(("kind", "when", "task"), list(rounds()))
def test_no_row_is_lost_twice_or_wrong_and_verify_knows(kind, when, task, stage, line) -> None:
    problems = play(kind, when, stage(kind, when, task), line(kind.name))
    assert not problems, "\n".join(problems)


def test_the_table_is_as_large_as_is_claimed() -> None:
    assert len(KINDS) >= 20
    assert {kind.where for kind in KINDS} == set(Where)
