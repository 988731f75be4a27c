"""What the faults share: a Ray head, a real S3 server, two jobs with their right answers, and the table."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import head, references, swift_servers
from tests.faults.processes import MARK, end_all
from tests.faults.proxy import FaultyProxy
from tests.faults.scene import ROOT, Bucket, Scene, command_environment
from tests.faults.table import Kind, Line, When, Where, write

SWIFT = ROOT / "build" / "swift" / "bin"
TABLE = ROOT / "build" / "faults.md"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path: Ray puts sockets below it."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def jobs(checkpoint: str, make_sentences, folder: Path) -> dict[str, references.Reference]:
    """The two jobs by task, without answers yet."""
    return references.make(Path(checkpoint), make_sentences, folder)


@pytest.fixture(scope="session")
def ray_head(jobs) -> Iterator[dict[str, str]]:
    poison = next(iter(jobs.values())).poison_token
    with head.running(command_environment({"BATCHLOOM_POISON_TOKEN": str(poison)})) as environment:
        yield environment


@pytest.fixture(scope="session")
def answered(jobs, ray_head) -> dict[str, references.Reference]:
    """The two jobs with the answers of an undisturbed run, some of which were compared with transformers'."""
    for reference in jobs.values():
        reference.answer(ray_head)
    return jobs


@pytest.fixture(scope="session")
def store() -> Iterator[Bucket]:
    """A bucket in Swift behind the proxy."""
    if not (SWIFT / "swift-proxy-server").exists():
        pytest.skip("OpenStack Swift is not installed: make build/swift/.installed")
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swift-")))
        upstream = stack.enter_context(swift_servers.running(files, SWIFT))
        faulty = stack.enter_context(FaultyProxy(upstream).running())
        yield Bucket.make("faults", faulty, swift_servers.USER, swift_servers.KEY)


@pytest.fixture
def stage(answered, ray_head, request) -> Iterator[Callable[[Kind, When, str], Scene]]:
    """Make the scene for a kind of fault: when it comes, and for which task."""
    with ExitStack() as stack:

        def make(kind: Kind, when: When, task: str) -> Scene:
            environment = dict(ray_head)
            if kind.where is Where.OWN_RAY:
                mark = f"own-{id(stack)}"
                environment = command_environment({MARK: mark})
                stack.callback(end_all, mark)
            bucket = request.getfixturevalue("store") if kind.where is Where.STORE else None
            scene = answered[task].scene(when, environment, bucket)
            stack.callback(scene.remove)
            return scene

        yield make


@pytest.fixture(scope="session")
def line(pytestconfig) -> Iterator[Callable[[str], Line]]:
    """Return the table's line of a kind; at the end the table is written and printed."""
    lines: dict[str, Line] = {}
    yield lambda name: lines.setdefault(name, Line(name))
    text = write(lines.values(), TABLE)
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}\nwritten to {TABLE}")
