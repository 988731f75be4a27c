"""Processes that die, stop or come twice."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.oracle import ERROR_ROW
from tests.faults.processes import send
from tests.faults.scene import ROWS_PER_GROUP, End, Scene
from tests.faults.table import When, Where, fault

POISON = "☠"
SLOW = {"rows_per_unit": 1}  # a job that lasts long enough to hit its actor twice: 40 units took 3 seconds


def signal_driver(
    scene: Scene, which: signal.Signals, times: int = 3, between: Callable[[], object] = lambda: None
) -> int:
    """Signal the driver in mid-run and give the command again, `times` times; `between`: before it is given."""
    for number in range(times):
        scene.wait_for_parts(1 + number * scene.num_parts // (times + 1))
        assert scene.process is not None
        scene.process.send_signal(which)
        scene.ends.append(scene.wait(scene.process))
        between()
        scene.process = scene.start()
    return times


@fault("SIGKILL of the driver")
def driver_killed(scene: Scene) -> int:
    return signal_driver(scene, signal.SIGKILL)


@fault("SIGKILL of the driver, with its own Ray", where=Where.OWN_RAY)
def driver_killed_with_its_ray(scene: Scene) -> int:
    return signal_driver(scene, signal.SIGKILL, times=1)


@fault("SIGTERM of the driver")
def driver_terminated(scene: Scene) -> int:
    return signal_driver(scene, signal.SIGTERM)


@fault("SIGINT of the driver (Ctrl-C)")
def driver_interrupted(scene: Scene) -> int:
    return signal_driver(scene, signal.SIGINT)


@fault("SIGKILL of the actor", input=SLOW)
def actor_killed(scene: Scene) -> int:
    scene.wait_for_parts(2)
    num_killed = scene.signal("Infer", signal.SIGKILL)
    scene.wait_for_parts(len(scene.parts()) + 1)  # early: a part's twelve rows are classified in a third of a second
    return num_killed + scene.signal("Infer", signal.SIGKILL)


@fault("SIGKILL of the actor while it loads")
def loading_actor_killed(scene: Scene) -> int:
    return scene.signal("Infer", signal.SIGKILL)


@fault("SIGSTOP of the actor for eight seconds", input=SLOW)
def actor_stopped(scene: Scene) -> int:
    scene.wait_for_parts(2)
    num_stopped = scene.signal("Infer", signal.SIGSTOP)
    time.sleep(8)
    scene.signal("Infer", signal.SIGCONT)
    return num_stopped


@fault("SIGSTOP of the actor for ever", limits={"stall_minutes": 0.2}, input=SLOW)
def actor_stopped_for_ever(scene: Scene) -> int:
    scene.wait_for_parts(2)
    return scene.signal("Infer", signal.SIGSTOP)


@fault("SIGKILL of workers beside the actor")
def workers_killed(scene: Scene) -> int:
    num_killed = 0
    for count in (1, 4, 7):
        scene.wait_for_parts(count)
        workers = set(scene.pids("ray::")) - set(scene.pids("Infer")) - set(scene.pids("Agent"))
        num_killed += send(sorted(workers)[:2], signal.SIGKILL)
    return num_killed


@fault("SIGKILL of the raylet", where=Where.OWN_RAY)
def raylet_killed(scene: Scene) -> int:
    scene.wait_for_parts(2)
    return scene.signal("raylet/raylet", signal.SIGKILL)


@fault("SIGKILL of the GCS", where=Where.OWN_RAY)
def gcs_killed(scene: Scene) -> int:
    scene.wait_for_parts(2)
    return scene.signal("gcs/gcs_server", signal.SIGKILL)


@fault("two more drivers at once")
def driver_doubled(scene: Scene) -> int:
    others = [scene.start(is_another=True), scene.start(is_another=True)]
    for other in others:
        scene.ends.append(scene.wait(other))
    return len(others)


def _expect_refusal(scene: Scene, end: End) -> None:
    assert end.code == 2, end.printed
    assert "A job is running in output" in end.printed
    scene.ends.append(end)


@fault("a second driver without leave")
def driver_refused(scene: Scene) -> int:
    scene.wait_for_parts(1)
    other = scene.wait(scene.start())
    _expect_refusal(scene, other)
    return 1


def _heartbeat(scene: Scene) -> Path:
    return scene.output / "_batchloom" / "heartbeat.json"


def _kill_driver(scene: Scene) -> None:
    scene.wait_for_parts(2)
    assert scene.process is not None
    scene.process.kill()
    scene.ends.append(scene.wait(scene.process))


def _move_driver(scene: Scene) -> None:
    """Make the driver's heartbeat one that another machine has just written."""
    kept = json.loads(_heartbeat(scene).read_text())
    elsewhere = {"host": f"not-{socket.gethostname()}", "at": time.time(), "beat": kept["beat"] + 1, "ended": ""}
    _heartbeat(scene).write_text(json.dumps(kept | elsewhere))


@fault("SIGKILL of a driver on another machine")
def driver_killed_elsewhere(scene: Scene) -> int:
    """Whoever runs the command next on this one waits, to see that it is dead."""
    _kill_driver(scene)
    _move_driver(scene)
    scene.process = scene.start()
    return 1


@fault("a driver that lives on another machine")
def driver_elsewhere(scene: Scene) -> int:
    _kill_driver(scene)
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(1):
            _move_driver(scene)

    _move_driver(scene)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        end = scene.wait(scene.start())
    finally:
        is_over.set()
        thread.join()
    _expect_refusal(scene, end)
    scene.process = scene.start()
    return 2


@fault("heartbeat that is none", When.UNFINISHED)
def heartbeat_garbled(scene: Scene) -> int:
    contents = (b"", b"[]", b'{"run": 3}', b"\xff\xfe", b'{"at": "soon"}')
    for content in contents[:-1]:
        _heartbeat(scene).write_bytes(content)
        assert scene.verify().code != 0
    _heartbeat(scene).write_bytes(contents[-1])
    return len(contents)


@fault("a row that kills its process", When.BEFORE)
def row_kills(scene: Scene) -> int:
    shard = scene.shards()[0]
    table = pq.read_table(shard)
    texts = table["text"].to_pylist()
    for row in (3, 20):
        texts[row] += POISON
        scene.expected[table["id"][row].as_py()] = ERROR_ROW
    column = table.schema.get_field_index("text")
    pq.write_table(table.set_column(column, "text", pa.array(texts)), shard, row_group_size=ROWS_PER_GROUP)
    return 2
