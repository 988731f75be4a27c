"""Every kind of fault against both jobs: no row is lost, none comes twice, none is wrong, and verify knows."""

import pytest

from tests.faults import input_faults, output_faults, process_faults, references, store_faults
from tests.faults.table import KINDS, When, Where, play

MODULES = (process_faults, input_faults, output_faults, store_faults)  # importing them fills KINDS
pytestmark = pytest.mark.faults


def rounds():
    """Each kind in all its states; in mid-run and on a store with both tasks, at rest with one a state."""
    generation, classification = references.TASKS
    tasks = {When.UNFINISHED: [generation], When.FINISHED: [classification]}
    for kind in KINDS:
        for when in kind.when:
            for task in tasks.get(when, [generation, classification]):
                yield pytest.param(kind, when, task, id=f"{kind.name}, {when.value}, {task}")


@pytest.mark.parametrize(("kind", "when", "task"), list(rounds()))
def test_no_row_is_lost_twice_or_wrong_and_verify_knows(kind, when, task, stage, line) -> None:
    problems = play(kind, when, stage(kind, when, task), line(kind.name))
    assert not problems, "\n".join(problems)


def test_the_table_is_as_large_as_is_claimed() -> None:
    assert len(KINDS) >= 20
    assert {kind.where for kind in KINDS} == set(Where)
