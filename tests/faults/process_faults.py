"""Processes that die, stop or come twice."""

import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.oracle import ERROR_ROW
from tests.faults.processes import send
from tests.faults.scene import ROWS_PER_GROUP, Scene
from tests.faults.table import When, Where, fault

POISON = "☠"
SLOW = {"rows_per_unit": 3}  # a job that lasts long enough to hit its actor twice


def _signal_driver(scene: Scene, which: signal.Signals, times: int = 3) -> int:
    """Signal the driver in mid-run and give the command again, `times` times."""
    for number in range(times):
        scene.wait_for_parts(1 + number * scene.num_parts // (times + 1))
        assert scene.process is not None
        scene.process.send_signal(which)
        scene.ends.append(scene.wait(scene.process))
        scene.process = scene.start()
    return times


@fault("SIGKILL of the driver")
def driver_killed(scene: Scene) -> int:
    return _signal_driver(scene, signal.SIGKILL)


@fault("SIGKILL of the driver, with its own Ray", where=Where.OWN_RAY)
def driver_killed_with_its_ray(scene: Scene) -> int:
    return _signal_driver(scene, signal.SIGKILL, times=1)


@fault("SIGTERM of the driver")
def driver_terminated(scene: Scene) -> int:
    return _signal_driver(scene, signal.SIGTERM)


@fault("SIGINT of the driver (Ctrl-C)")
def driver_interrupted(scene: Scene) -> int:
    return _signal_driver(scene, signal.SIGINT)


@fault("SIGKILL of the actor", input=SLOW)
def actor_killed(scene: Scene) -> int:
    scene.wait_for_parts(2)
    num_killed = scene.signal("Infer", signal.SIGKILL)
    scene.wait_for_parts(len(scene.parts()) + 5)
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
