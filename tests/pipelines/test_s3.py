"""A whole job on an object store: moto's server, an S3 over HTTP on this machine."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchloom import pipelines
from batchloom.pipelines.storage import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """Storage options for a bucket named `archive`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    import s3fs

    s3fs.S3FileSystem(**options).makedirs("archive", exist_ok=True)  # moto's servers share one memory
    yield options
    server.stop()


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
    assert "test" not in recorded  # key and secret
    parts = [name for name in output.names() if name.endswith(".parquet")]
    output.remove(parts[:1])
    assert not pipelines.verify("s3://archive/summaries", s3).ok
    assert pipelines.run(job).timing["units_computed"] == 1
    assert pipelines.verify("s3://archive/summaries", s3).ok


def job_filesystem(options: dict[str, Any]) -> Any:
    import s3fs

    return s3fs.S3FileSystem(**options, skip_instance_cache=True)
