"""A job whose processes Ray ends for lack of memory, again and again, says so and ends."""

from dataclasses import dataclass, field

import pytest
import ray

from batchloom.pipelines.watching.memory_kills import (
    FEWEST,
    LIFE_SECONDS,
    SECONDS,
    MemoryKill,
    MemoryKills,
    found,
    is_of,
    said_of,
)
from batchloom.pipelines.watching.roster import Process

WORKER = "8ad7bbb38301066d18a46d1733dd64dba75804cfaa3ac71443af1408"
PAGE = f"""2 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 10.0.0.7, ID: 403e) was 22.37GB used / 23.54GB limit (0.950255)
OOM kill reason: Memory usage 24022399232B exceeded threshold of 24012688588B (95.0% of 25276514304B limit)
Considered workers: [
Selected to kill: (Task: job ID=07000000, lease ID=0000, task name=f, required resources={{CPU: 0.25}}, pid=25011, \
actual memory used=0.04GB, worker ID=295dca8e053c41743c31f3886782a4cd8dbabeaf2531104e997c0672)
Selected to kill: (Actor(d373): job ID=01000000, lease ID=0000, task name=A.__init__, required resources={{}}, \
pid=25012, actual memory used=0.04GB, worker ID={WORKER})
]"""
"""Ray 2.60's, shortened."""
FOUND = "22.37 of 23.54 GB are used on node 10.0.0.7, and Ray allows 95 %"
REPLICA = Process("node", 7, "1")


def test_rays_page_tells_the_nodes_memory_and_whose_process_it_was() -> None:
    assert found(PAGE) == FOUND
    assert found("Words of another Ray.\nMore.") == "Words of another Ray"
    said = said_of(ray.exceptions.OutOfMemoryError(PAGE))
    assert said.startswith(f"Ray ended a process of this job for lack of memory: {FOUND}. End what else runs there")
    assert is_of("01000000", WORKER, PAGE)
    assert not is_of("07000000", WORKER, PAGE)
    assert is_of("07000000", WORKER, "words of another Ray")


@dataclass
class Scene:
    """A cluster in which processes are ended."""

    now: float = 0.0
    kills: list[MemoryKill] = field(default_factory=lambda: [MemoryKill("of an earlier job", FOUND)])

    def __post_init__(self) -> None:
        self.watched = MemoryKills(lambda: self.kills, lambda: self.now)

    def kill(self, times: int, every: float, *at_work: Process) -> None:
        for _ in range(times):
            self.now += every
            self.kills.append(MemoryKill(f"at {self.now}", FOUND))
            self.watched.look(at_work)


def test_the_first_is_told_once_and_nothing_of_jobs_before() -> None:
    """The heartbeat's trouble was empty however many processes were ended."""
    scene = Scene()
    scene.watched.look([])
    assert (scene.watched.is_news(), scene.watched.trouble()) == (False, None)
    scene.kill(1, 1.0)
    assert (scene.watched.is_news(), scene.watched.is_news()) == (True, False)
    told = f"Ray ends processes of this job for lack of memory, 1 since a unit was done: {FOUND}"
    assert scene.watched.trouble() == told
    scene.now += 1000
    assert scene.watched.trouble() is None


def test_many_in_a_row_over_a_while_end_the_job_with_what_to_change() -> None:
    """Guards a bug: Ray begins anew without an end, and so did the job."""
    scene = Scene()
    scene.kill(FEWEST, 0.1)  # one look at a crowded node is no reason
    assert scene.watched.loss() is None
    scene.kill(1, SECONDS)
    loss = scene.watched.loss()
    assert loss is not None
    assert loss.startswith(
        f"Ray ended {FEWEST + 1} processes of this job for lack of memory within {SECONDS + 0.5:.0f} s"
    )
    assert FOUND in loss
    assert "engine.replicas.max" in loss


def test_few_in_a_row_do_not_end_it() -> None:
    scene = Scene()
    scene.kill(FEWEST - 1, SECONDS)
    assert scene.watched.loss() is None


def test_a_unit_that_is_done_between_begins_the_count_anew() -> None:
    scene = Scene()
    scene.kill(FEWEST, SECONDS)
    assert scene.watched.loss() is not None
    scene.watched.went_on()
    assert scene.watched.loss() is None
    assert scene.watched.trouble() is not None


@pytest.mark.parametrize(("replicas", "ends"), [([REPLICA], False), ([], True)])
def test_a_replica_at_work_that_lives_may_still_answer(replicas: list[Process], ends: bool) -> None:
    """One node of many that has too little memory must not end a job whose other nodes load a large model."""
    scene = Scene()
    scene.kill(4 * FEWEST, LIFE_SECONDS / 2, *replicas)
    assert (scene.watched.loss() is not None) == ends


def test_replicas_that_are_ended_before_they_answer_are_no_sign_of_life() -> None:
    scene = Scene()
    for number in range(4 * FEWEST):
        scene.kill(1, LIFE_SECONDS / 2, Process("node", number, "1"))
    assert scene.watched.loss() is not None
