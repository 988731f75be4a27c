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
from tests.faults.table import Kind, Line, Table, When, Where
from tests.processes import free_ports

SWIFT = ROOT / "build" / "swift" / "bin"
TABLE = ROOT / "build" / "faults.md"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path: Ray puts sockets below it."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def proxy_port() -> int:
    """Where jobs look for their object store, if they use one."""
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="session")
def jobs(checkpoint: str, make_sentences, folder: Path) -> dict[str, references.Reference]:
    """The two jobs by task, without answers yet."""
    return references.make(Path(checkpoint), make_sentences, folder)


@pytest.fixture(scope="session")
def environment(folder: Path, proxy_port: int, jobs) -> dict[str, str]:
    """Of all commands: the store's address and credentials, a cache of their own, and the token that kills."""
    poison = next(iter(jobs.values())).poison_token
    return command_environment(
        {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy_port}",
            "AWS_ACCESS_KEY_ID": swift_servers.USER,
            "AWS_SECRET_ACCESS_KEY": swift_servers.KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "BATCHLOOM_CACHE": str(folder / "cache"),
            "BATCHLOOM_POISON_TOKEN": str(poison),
        }
    )


@pytest.fixture(scope="session")
def ray_head(environment) -> Iterator[dict[str, str]]:
    """The environment of commands that use one Ray head."""
    with head.running(environment) as inside:
        yield inside


@pytest.fixture(scope="session")
def answered(jobs, ray_head) -> dict[str, references.Reference]:
    """The two jobs with the answers of an undisturbed run, some of which were compared with transformers'."""
    for reference in jobs.values():
        reference.answer(ray_head)
    return jobs


@pytest.fixture(scope="session")
def swift(environment, proxy_port: int) -> Iterator[Bucket]:
    """A bucket in Swift behind the proxy."""
    if not (SWIFT / "swift-proxy-server").exists():
        pytest.skip("OpenStack Swift is not installed: make build/swift/.installed")
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swift-")))
        upstream = stack.enter_context(swift_servers.running(files, SWIFT))
        yield Bucket.make("faults", stack.enter_context(FaultyProxy(upstream, proxy_port).running()), environment)


@pytest.fixture
def stage(answered, ray_head, environment, request) -> Iterator[Callable[[Kind, When, str], Scene]]:
    """Make the scene for a kind of fault: when it comes, and for which task."""
    with ExitStack() as stack:

        def make(kind: Kind, when: When, task: str) -> Scene:
            inside = ray_head
            if kind.where is Where.OWN_RAY:
                inside = {**environment, MARK: f"own-{id(stack)}"}
                stack.callback(end_all, inside[MARK])
            bucket = request.getfixturevalue("swift") if kind.where is Where.STORE else None
            scene = answered[task].scene(When.BEFORE if kind.has_own_output else when, inside, bucket)
            stack.callback(scene.remove)
            scene.job |= {name: {**scene.job.get(name, {}), **own} for name, own in kind.job.items()}
            if kind.prepare is not None:
                kind.prepare(scene)
            if kind.has_own_output and when in (When.UNFINISHED, When.FINISHED):
                scene.finish()
                if when is When.UNFINISHED:
                    scene.open_again()
            return scene

        yield make


@pytest.fixture(scope="session")
def table(pytestconfig) -> Iterator[Table]:
    """The table, which is printed at the end; what is written so far is in the file at any time."""
    table = Table(TABLE)
    yield table
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{table.write()}\nwritten to {TABLE}")


@pytest.fixture
def line(table: Table) -> Iterator[Callable[[str], Line]]:
    """Return the table's line of a kind."""
    yield table.line
    table.write()
