"""The small set: one job behind a store that fails in many ways. `make test-faults` has them all, on a real store."""

import pytest

from tests.faults import proxy
from tests.faults.processes import MARK, end_all
from tests.faults.proxy import Burst, FaultyProxy
from tests.faults.scene import Bucket
from tests.faults.store_faults import PLACES
from tests.faults.table import Kind, Line, When, Where, Word, play

SCRIPT = (
    ("listing", proxy.refuse(503, "SlowDown"), 2),
    ("weights", proxy.cut_short, 1),
    ("footer", proxy.reset, 1),
    ("footer", proxy.refuse(404, "NoSuchKey"), 2),
    ("reading", proxy.refuse(403, "AccessDenied"), 2),
    ("reading", proxy.cut_short, 1),
    ("reading", proxy.garble, 1),
    ("first part", proxy.forget, 1),
    ("other parts", proxy.refuse(400, "ExpiredToken"), 2),
    ("manifest", proxy.refuse(500, "InternalError"), 2),
    ("_SUCCESS", proxy.refuse(403, "AccessDenied"), 2),
)


@pytest.fixture
def moto(environment, proxy_port: int):
    """A bucket in moto's server behind the proxy."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with FaultyProxy(f"http://{host}:{port}", proxy_port).running() as faulty:
        yield Bucket.make("faults", faulty, environment)
    server.stop()


def test_a_job_behind_a_failing_store_ends_with_every_row_right(jobs, environment, moto) -> None:
    reference = jobs["text-classification"]
    inside = {**environment, MARK: "by-moto"}
    scene = reference.scene(When.BEFORE, inside, moto)
    scene.expected = reference.reference_answers()
    bursts = [Burst(place, PLACES[place][0], answer, times, PLACES[place][1]) for place, answer, times in SCRIPT]
    kind = Kind(
        "a store that fails", lambda scene: scene.play(*bursts) or 0, (When.BEFORE,), Where.STORE, Word.ORACLE, {}
    )
    try:
        problems = play(kind, When.BEFORE, scene, line := Line(kind.name))
    finally:
        scene.remove()
        end_all(inside[MARK])
    assert not problems, "\n".join(problems)
    assert line.num_injected == len(SCRIPT)
