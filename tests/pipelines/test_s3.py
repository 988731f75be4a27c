"""A whole job on an object store: moto's server, an S3 over HTTP on this machine, in good and in bad times."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from batchloom import pipelines
from batchloom.models.patience import Patience
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.errors import InputError, JobError, OutputError
from batchloom.pipelines.metrics import ReplicasStarting, UnitDone
from batchloom.pipelines.planning.shards import find_shards
from batchloom.pipelines.stores.connection import Connection
from batchloom.pipelines.stores.patient_file import PatientFile
from batchloom.pipelines.stores.permission import check_writable
from batchloom.pipelines.stores.storage import Store
from tests.forms import write
from tests.pipelines.reading import ShardReader, ranges_of

REFUSALS = [
    ("403 Forbidden", "AccessDenied"),
    ("404 Not Found", "NoSuchKey"),
    ("503 Service Unavailable", "SlowDown"),
    ("400 Bad Request", "ExpiredToken"),
    ("500 Internal Server Error", "InternalError"),
]


class Weather:
    """Before a server: answers with refusals for some seconds from the next request on, or does not answer at all."""

    def __init__(self, server: Callable[..., Any]) -> None:
        self._server = server
        self._refusals: Iterator[tuple[str, str]] = iter(())
        self._seconds = 0.0
        self._ends: float | None = 0.0
        self.num_refused = 0
        self.num_hanging = 0
        self.released = threading.Event()

    def refuse(self, seconds: float, refusals: list[tuple[str, str]]) -> None:
        self._refusals, self._seconds, self._ends = itertools.cycle(refusals), seconds, None

    def clear(self) -> None:
        self._ends = 0.0
        self.num_refused = self.num_hanging = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if self.num_hanging:
            self.num_hanging -= 1
            self.released.wait(60)
        if self._ends is None:
            self._ends = time.monotonic() + self._seconds
        if time.monotonic() < self._ends:
            self.num_refused += 1
            status, code = next(self._refusals)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Type", "application/xml")])
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>bad weather</Message></Error>"
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body.encode()]
        return self._server(environ, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[dict[str, Any], Weather]]:
    """Storage options for a bucket named `archive`, and the weather."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    weather = Weather(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, weather, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = {
        "key": "k3y-of-nobody",
        "secret": "s3cr3t",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{server.port}"},
    }
    import s3fs

    s3fs.S3FileSystem(**options).makedirs("archive", exist_ok=True)  # moto's servers share one memory
    yield options, weather
    weather.released.set()
    server.shutdown()


@pytest.fixture
def s3(server: tuple[dict[str, Any], Weather]) -> dict[str, Any]:
    return server[0]


@pytest.fixture
def weather(server: tuple[dict[str, Any], Weather]) -> Iterator[Weather]:
    yield server[1]
    server[1].clear()


def test_marks_of_folders_are_no_files(s3) -> None:
    """A console's "create folder" puts an empty object whose key ends in a slash; the output was refused for it."""
    import s3fs

    filesystem = s3fs.S3FileSystem(**s3)
    for key in ("archive/marked/", "archive/marked/sub/"):
        filesystem.call_s3("put_object", Bucket="archive", Key=key.removeprefix("archive/"), Body=b"")
    store = Store("s3://archive/marked", s3)
    assert store.listing() == {}
    store.put("sub/part.parquet", b"x")
    store.put("sub/empty", b"")
    assert sorted(store.listing()) == ["sub/empty", "sub/part.parquet"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_reads_from_s3_and_writes_to_s3(make_job, make_sentences, s3) -> None:
    source = Store("s3://archive/2024", s3)
    for shard in range(2):
        sink = pa.BufferOutputStream()
        ids = list(range(shard * 20, shard * 20 + 20))
        pq.write_table(pa.table({"id": ids, "text": make_sentences(20, seed=shard)}), sink, row_group_size=8)
        source.put(f"day={shard}/docs.parquet", sink.getvalue().to_pybytes())
    job = make_job(paths=("s3://archive/2024/*/*.parquet",), output="s3://archive/summaries", storage_options=s3)
    manifest = pipelines.run(job)
    assert manifest.totals["rows"] == 40

    verification = pipelines.verify("s3://archive/summaries", s3)
    assert verification.ok, verification.problems
    assert verification.num_input_rows == 40
    table = pq.read_table("archive/summaries", filesystem=job_filesystem(s3)).sort_by("id")
    assert table["id"].to_pylist() == list(range(40))
    assert all(table["summary_text"].to_pylist())

    output = Store("s3://archive/summaries", s3)
    recorded = output.read("_batchloom/manifest.json").decode()
    assert "endpoint_url" in recorded
    assert "k3y-of-nobody" not in recorded
    assert "s3cr3t" not in recorded
    parts = [name for name in output.names() if name.startswith("part-")]
    output.remove(parts[:1])
    assert not pipelines.verify("s3://archive/summaries", s3).ok
    assert pipelines.run(job).timing["units_computed"] == 1
    assert pipelines.verify("s3://archive/summaries", s3).ok


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("form", [".csv.gz", ".jsonl", "delta"])
def test_a_job_over_each_kind_of_input_reads_it_from_s3(make_job, make_sentences, s3, tmp_path, form) -> None:
    rows = pa.table({"id": range(12), "text": make_sentences(12)})
    if form == "delta":
        write_deltalake(tmp_path / "in", rows, partition_by=["id"])
        DeltaTable(tmp_path / "in").delete("id = 7")
    else:
        (tmp_path / "in").mkdir()
        write(rows.slice(0, 5), tmp_path / "in", "a", form)
        write(rows.slice(5, 7), tmp_path / "in", "b", form)
    url = f"s3://archive/kinds/{form.strip('.')}"
    job_filesystem(s3).put(str(tmp_path / "in"), url, recursive=True)
    job = make_job(paths=(url,), output=f"{url}-answers", rows_per_unit=3, keep_columns=("id",), storage_options=s3)
    pipelines.run(job)
    verification = pipelines.verify(f"{url}-answers", s3)
    assert verification.ok, verification.problems
    table = pq.read_table(f"{url}-answers".removeprefix("s3://"), filesystem=job_filesystem(s3)).sort_by("id")
    assert table["id"].to_pylist() == [number for number in range(12) if form != "delta" or number != 7]
    assert all(table["summary_text"].to_pylist())


def job_filesystem(options: dict[str, Any]) -> Any:
    import s3fs

    return s3fs.S3FileSystem(**options, skip_instance_cache=True)


def shard(num_rows: int = 20, first: int = 0) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table(
        {"id": range(first, first + num_rows), "text": [f"Row {i} of the shard." for i in range(num_rows)]}
    )
    pq.write_table(table, sink, row_group_size=10)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal[1])
def test_a_known_call_waits_for_the_end_of_any_refusal(s3, weather: Weather, refusal: tuple[str, str]) -> None:
    """The answer to a HEAD has no body: an expired token's came as "Bad Request", and a unit was given up for it."""
    store = Store("s3://archive/refused", s3)
    calls = (lambda: store.put("a", b"first"), lambda: store.stat("a"), lambda: store.read("a"), lambda: store.names())
    for call in calls:
        call()
    for call in calls:
        refused = weather.num_refused
        weather.refuse(0.3, [refusal])
        call()
        assert weather.num_refused > refused
    assert store.read("a") == b"first"
    assert list(store.names()) == ["a"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_survives_outages_while_it_reads_writes_and_closes(make_job, s3, weather: Weather) -> None:
    """Each of these answers made 20 damaged_input rows with null ids or a traceback, and the former an exit code 0."""
    source = Store("s3://archive/outage", s3)
    for number in range(2):
        source.put(f"{number}.parquet", shard(first=20 * number))
    job = make_job(paths=("s3://archive/outage",), output="s3://archive/outage-out", storage_options=s3)
    num_done = itertools.count(1)
    refused = []

    def break_it(event: Any) -> None:
        if isinstance(event, ReplicasStarting) or (isinstance(event, UnitDone) and next(num_done) == 4):
            refused.append(weather.num_refused)
            weather.refuse(3.0, REFUSALS)

    manifest = pipelines.run(job, break_it)
    refused.append(weather.num_refused)
    assert refused[0] == 0 < refused[1] < refused[2]  # both outages were met
    assert manifest.totals["ok"] == 40
    verification = pipelines.verify("s3://archive/outage-out", s3)
    assert verification.ok, verification.problems
    assert verification.num_input_rows == 40


def test_a_wrong_key_is_told_at_planning_in_one_line(make_job, s3, weather: Weather) -> None:
    Store("s3://archive/key", s3).put("a.parquet", shard())
    job = make_job(paths=("s3://archive/key",), output="s3://archive/key-out", storage_options=s3)
    job = replace(job, limits=replace(job.limits, storage_patience=1.0))
    weather.refuse(1e6, [("403 Forbidden", "InvalidAccessKeyId")])
    begun = time.monotonic()
    with pytest.raises(
        InputError, match="Listing input path 's3://archive/key' failed: PermissionError: bad"
    ) as raised:
        pipelines.plan(job)
    assert time.monotonic() - begun < 30
    assert "Check the address, the credentials and what they permit." in str(raised.value)


def test_an_output_that_may_only_be_read_is_told_by_plan(s3, weather: Weather) -> None:
    store = Store("s3://archive/read-only", s3, Patience(seconds=1.0, doubtful_seconds=1.0))
    check_writable(store)
    assert store.names() == {}
    fresh = replace(store, known=set())
    weather.refuse(1e6, [("403 Forbidden", "AccessDenied")])
    with pytest.raises(OutputError, match=r"Output s3://archive/read-only cannot be written: .*PermissionError"):
        check_writable(fresh)


def test_a_bucket_that_is_not_there_is_told_at_once(s3) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"matches no file|NoSuchBucket|does not exist"):
        find_shards(InputConfig(paths=("s3://no-such-bucket/x",), storage_options=s3))
    assert time.monotonic() - begun < 30


def test_a_server_that_accepts_and_never_answers_is_asked_again(s3, weather: Weather) -> None:
    store = Store("s3://archive/hanging", s3, Patience(seconds=60, timeout=1.0))
    for call in (lambda: store.put("a", b"first"), lambda: store.read("a"), lambda: store.stat("a")):
        weather.num_hanging = 2
        begun = time.monotonic()
        call()
        assert weather.num_hanging == 0
        assert time.monotonic() - begun < 15  # s3fs alone waits for 75 s
    assert store.read("a") == b"first"


def test_an_object_that_was_swapped_fails_its_units(s3) -> None:
    source = Store("s3://archive/swap", s3)
    source.put("a.parquet", shard())
    shards, schemas = find_shards(InputConfig(paths=("s3://archive/swap",), storage_options=s3))
    read = ShardReader(shards[0], schemas[0], s3, "s3://archive/swap", Patience(seconds=5))
    units = ranges_of(shards[0], 10)
    source.put("a.parquet", shard(first=100))
    with pytest.raises(JobError, match=r"^a\.parquet has changed since the job was planned"):
        list(read.tables(units))
    source.put("a.parquet", shard())  # the same bytes have the same etag
    assert [row for _, table in read.tables(units) for row in table["id"].to_pylist()] == list(range(20))


def test_an_object_that_is_swapped_while_it_is_read_fails_its_units(s3) -> None:
    source = Store("s3://archive/swap", s3)
    source.put("a.parquet", shard())
    shards, _ = find_shards(InputConfig(paths=("s3://archive/swap",), storage_options=s3))
    connection = Connection("s3://archive/swap", s3, Patience(seconds=5), {"read"})
    with PatientFile(connection, shards[0].source.path, shards[0].source.check_unchanged) as file:
        source.put("a.parquet", shard(first=100))
        with pytest.raises(JobError, match=r"^a\.parquet has changed since the job was planned"):
            file.read(100)
