"""A local file that has another time and the same bytes is the one that was planned; any other change makes another."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from batchloom.pipelines.errors import JobError
from batchloom.pipelines.formats.base import Columns
from batchloom.pipelines.planning import kept_footers
from batchloom.pipelines.planning.kept_footers import KeptFooters
from batchloom.pipelines.planning.shards import Shard, find_shards
from tests.forms import write
from tests.pipelines.planning.test_kept_footers import COLUMNS, config, num_read, plan, store_of  # noqa: F401


def identities(shards: list[Shard]) -> list[str]:
    return [shard.source.identity for shard in shards]


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def check(shards: list[Shard]) -> None:
    """As who reads rows does."""
    for shard in shards:
        stat = os.stat(shard.source.path)
        shard.source.check_unchanged({"size": stat.st_size, "mtime": stat.st_mtime})


def test_a_touched_or_copied_file_keeps_its_identity_whoever_asks(config, num_read) -> None:  # noqa: F811
    first = plan(config)
    folder = Path(config.paths[0])
    touch(folder / "a.parquet")
    shutil.copy(folder / "b.parquet", folder / "new")
    (folder / "new").replace(folder / "b.parquet")
    num_read()
    for columns, keeps in ((None, False), (COLUMNS, True), (None, False)):
        again = plan(config, columns, keeps)
        assert identities(again) == identities(first)
        check(again)
        assert num_read() == 0
    touch(folder / "a.parquet")
    with pytest.raises(JobError, match="has changed since the job was planned"):
        check(again)
    again = plan(config, Columns(("text",), ("id",)))  # other footers are read, and the file is the same
    assert num_read() == 3
    assert identities(again) == identities(plan(config, None, keeps=False)) == identities(first)


def test_files_of_records_are_not_gone_through_again(config, num_read) -> None:  # noqa: F811
    folder = Path(config.paths[0])
    for path in folder.iterdir():
        path.unlink()
    write(pa.table({"text": ["x", "y"]}), folder, "a", ".jsonl")
    first = plan(config)
    touch(folder / "a.jsonl")
    num_read()
    assert identities(plan(config)) == identities(first)
    assert num_read() == 0


def test_another_byte_or_another_size_makes_another_file(config) -> None:  # noqa: F811
    first = plan(config)
    folder = Path(config.paths[0])
    content = bytearray((folder / "a.parquet").read_bytes())
    content[8] ^= 1  # among values
    (folder / "a.parquet").write_bytes(content)
    touch(folder / "a.parquet")
    (folder / "c.parquet").write_bytes((folder / "b.parquet").read_bytes())
    again = plan_of_others(config)
    assert [one == other for one, other in zip(identities(first), again, strict=True)] == [False, True, False]


def plan_of_others(config) -> list[str]:  # noqa: F811
    shards, _ = find_shards(config, None, COLUMNS, KeptFooters(store_of(config), COLUMNS))
    check(shards)
    return identities(shards)


def test_much_data_is_not_hashed_and_a_touch_is_a_change(config, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(kept_footers, "HASHED_BYTES", 10)
    first = plan(config)
    touch(Path(config.paths[0]) / "a.parquet")
    again = plan(config)
    assert [one == other for one, other in zip(identities(first), identities(again), strict=True)] == [
        False,
        True,
        True,
    ]
