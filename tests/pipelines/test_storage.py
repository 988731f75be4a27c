import os
import pickle

import pytest
from fsspec.implementations.local import LocalFileSystem

from batchloom.pipelines.errors import ConfigError, StoreError
from batchloom.pipelines.stores.connection import open_filesystem
from batchloom.pipelines.stores.storage import Store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out")


def test_what_is_put_is_read_and_listed(store: Store) -> None:
    assert store.names() == {}
    store.put("a.parquet", b"abc")
    store.put("_batchloom/job.json", b"{}")
    store.discard_temporary()
    assert store.names() == {"a.parquet": 3, "_batchloom/job.json": 2}
    assert store.read("a.parquet") == b"abc"


def test_a_second_put_replaces_the_first(store: Store) -> None:
    store.put("a", b"abc")
    store.put("a", b"de")
    assert store.read("a") == b"de"


def test_a_store_travels_by_pickle(store: Store) -> None:
    store.put("a", b"abc")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"abc"


def test_files_that_tell_how_a_job_was_run_are_for_their_owner(tmp_path) -> None:
    store = Store(str(tmp_path / "out"))
    store.put("a.parquet", b"part")
    store.put("_batchloom/job.json", b"{}")
    store.put("_batchloom/job.json", b"{}")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out" / "_batchloom" / "job.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out" / "a.parquet").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_writer_that_dies_leaves_no_part(tmp_path, monkeypatch) -> None:
    store = Store(str(tmp_path))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(StoreError, match=r"Writing .*a\.parquet failed: OSError: killed\. Check the path"):
        store.put("a.parquet", b"abc")
    assert not any(name.endswith(".parquet") for name in store.names())


def test_a_writer_survives_a_job_that_cleans_up_beside_it(tmp_path, monkeypatch) -> None:
    store, replace = Store(str(tmp_path)), os.replace

    def after_cleaning_up(source: str, target: str) -> None:
        monkeypatch.setattr(os, "replace", replace)
        store.discard_temporary()
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_cleaning_up)
    store.put("a.parquet", b"part")
    assert store.read("a.parquet") == b"part"


def test_a_file_takes_the_folders_with_it_that_it_was_alone_in(tmp_path) -> None:
    store = Store(str(tmp_path / "out"))
    for name in ("lang=en/day=1/a", "lang=en/day=2/a", "lang=de/day=1/a"):
        store.put(name, b"a")
    store.discard_temporary()
    store.remove(["lang=en/day=1/a", "lang=de/day=1/a"])
    assert sorted(path.name for path in tmp_path.rglob("*=*")) == ["day=2", "lang=en"]
    store.remove(["lang=en/day=2/a"])
    assert (tmp_path / "out").is_dir()
    assert not list(tmp_path.rglob("*=*"))


def test_a_writer_survives_a_folder_that_another_leaves_empty(tmp_path, monkeypatch) -> None:
    store, replace = Store(str(tmp_path)), os.replace
    store.put("lang=en/before", b"part")

    def after_removal(source: str, target: str) -> None:
        monkeypatch.setattr(os, "replace", replace)
        store.remove(["lang=en/before"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_removal)
    store.put("lang=en/a.parquet", b"part")
    assert store.read("lang=en/a.parquet") == b"part"


def test_a_folder_that_vanishes_while_it_is_listed_does_not_hide_the_files_beside_it(tmp_path, monkeypatch) -> None:
    """As `_batchloom/tmp` does when a concurrent job ends."""
    store = Store(str(tmp_path))
    store.put("a.parquet", b"part")
    (tmp_path / "b").mkdir()
    ls = LocalFileSystem.ls

    def after_it_vanished(self: LocalFileSystem, path: str, **kwargs: object) -> object:
        if path.endswith("/b") and (tmp_path / "b").exists():
            (tmp_path / "b").rmdir()
        return ls(self, path, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", after_it_vanished)
    assert store.names() == {"a.parquet": 4}


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="nosuch://"):
        open_filesystem("nosuch://bucket/x", {})
