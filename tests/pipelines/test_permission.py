"""Whether an output may be written is known before anything is computed, and finding out leaves nothing behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchloom.models.patience import Patience
from batchloom.pipelines.errors import OutputError
from batchloom.pipelines.stores.permission import MARKER, check_writable
from batchloom.pipelines.stores.storage import Store
from tests.pipelines.faulty import FaultyFileSystem


@pytest.fixture
def store() -> Iterator[Store]:
    FaultyFileSystem.reset()
    yield Store("faulty://bucket/out", patience=Patience(seconds=0.1, doubtful_seconds=0.1))
    FaultyFileSystem.reset()


def test_a_folder_that_may_be_written_is_left_as_it_was(store: Store) -> None:
    store.put("part-a.parquet", b"x")
    check_writable(store)
    assert store.names() == {"part-a.parquet": 1}


def test_credentials_that_only_read_are_told_with_what_to_do(store: Store) -> None:
    FaultyFileSystem.always["write"] = PermissionError("AccessDenied: s3:PutObject")
    with pytest.raises(OutputError) as raised:
        check_writable(store)
    assert str(raised.value).startswith("Output faulty://bucket/out cannot be written: ")
    assert "AccessDenied: s3:PutObject" in str(raised.value)
    assert str(raised.value).endswith("the credentials and what they permit. Or name another output.path.")
    assert store.names() == {}


def test_credentials_that_never_remove_may_write(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    FaultyFileSystem.always["remove"] = PermissionError("AccessDenied: s3:DeleteObject")
    check_writable(store)
    (name,) = store.names()
    assert name.startswith(MARKER), "below _batchloom/, where nobody takes it for a part"
    assert "stay" in caplog.text


def test_a_local_folder_is_not_made_by_looking(tmp_path: Path) -> None:
    check_writable(Store(str(tmp_path / "a" / "b")))
    assert list(tmp_path.iterdir()) == []


def test_a_local_folder_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != str(tmp_path))  # root may always
    with pytest.raises(OutputError, match=f"this user may not write to {tmp_path}\\. Change its permissions"):
        check_writable(Store(str(tmp_path / "out")))


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is no folder"):
        check_writable(Store(str(tmp_path / "out" / "deeper")))
