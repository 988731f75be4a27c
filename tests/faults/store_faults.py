"""An object store that answers wrongly for a time: each kind of fault at each place of a job's way through it."""

import signal

from tests.faults import proxy
from tests.faults.proxy import Answer, Burst, request
from tests.faults.scene import Scene
from tests.faults.table import When, Where, fault

PLACES = {
    "listing": (request("GET", listing=True), 0),
    "weights": (request("GET", "HEAD", part="/model/model.safetensors"), 0),
    "footer": (request("GET", "HEAD", part="/corpus/"), 0),
    "reading": (request("GET", "HEAD", part="/corpus/"), 12),
    "first part": (request("PUT", part=r"/out/part-"), 0),
    "other parts": (request("PUT", part=r"/out/part-"), 6),
    "manifest": (request("PUT", part="manifest.json"), 0),
    "_SUCCESS": (request("PUT", part="_SUCCESS"), 0),
}
OUTAGE_SECONDS = 120.0
READS = ("listing", "weights", "footer", "reading")
WRITES = ("first part", "other parts", "manifest", "_SUCCESS")


def _everywhere(scene: Scene, answer: Answer, *places: str, times: float = 3, seconds: float = float("inf")) -> int:
    """Play a burst at each place; those that happen are counted at the end."""
    bursts = []
    for place in places or PLACES:
        matches, skip = PLACES[place]
        bursts.append(Burst(place, matches, answer, times=times, skip=skip, seconds=seconds))
    scene.play(*bursts)
    return 0


def store_fault(name: str, answer: Answer, *places: str, times: float = 3, seconds: float = float("inf")) -> None:
    """Add a kind to the table: this answer in place of the right one, at these places (all of them by default)."""

    @fault(name, When.BEFORE, where=Where.STORE)
    def inject(scene: Scene) -> int:
        return _everywhere(scene, answer, *places, times=times, seconds=seconds)


store_fault("S3: 403 AccessDenied", proxy.refuse(403, "AccessDenied"))
store_fault(
    "S3: 403 for five seconds", proxy.refuse(403, "AccessDenied"), "reading", "other parts", times=1e9, seconds=5
)
store_fault("S3: 404 NoSuchKey", proxy.refuse(404, "NoSuchKey"), "footer", "reading", *WRITES)
store_fault("S3: 400 ExpiredToken", proxy.refuse(400, "ExpiredToken"))
store_fault("S3: 500 InternalError", proxy.refuse(500, "InternalError"))
store_fault("S3: 503 SlowDown", proxy.refuse(503, "SlowDown"), times=8)
store_fault("S3: connection reset", proxy.reset, times=8)
store_fault("S3: reply lost after a PUT", proxy.forget, *WRITES)
store_fault("S3: body cut in the middle", proxy.cut_short, *READS)
store_fault("S3: half of the body as all of it", proxy.shorten, "footer", "reading")
store_fault("S3: wrong bytes of the right length", proxy.garble, "footer", "reading", times=1)
store_fault("S3: silence for ten seconds", proxy.hang(10), times=1)
store_fault("S3: slow drip", proxy.drip(5), *READS)
store_fault("S3: ETag of another object while reading", proxy.rename_etag, "reading", times=2)
store_fault("S3: PUT acknowledged and not done", proxy.pretend, "first part", "other parts", times=1)


@fault("S3: outage of two minutes in mid-run", where=Where.STORE)
def outage(scene: Scene) -> int:
    scene.wait_for_parts(3)
    scene.play(Burst("outage", lambda _: True, proxy.reset, times=1e9, seconds=OUTAGE_SECONDS))
    return 0


@fault("S3: part deleted in mid-run", where=Where.STORE)
def stored_part_deleted(scene: Scene) -> int:
    scene.wait_for_parts(4)
    gone = scene.parts()[1:3]
    for part in gone:
        scene.filesystem.rm_file(part)
    return len(gone)


@fault("S3: SIGKILL of the driver", where=Where.STORE)
def driver_of_store_killed(scene: Scene) -> int:
    scene.wait_for_parts(3)
    assert scene.process is not None
    scene.process.send_signal(signal.SIGKILL)
    return 1
