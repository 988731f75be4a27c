"""What is loaded is what was planned: weights, tokenizer and configuration, at every start and by every rank."""

import json
import os
import pickle
import shutil
import time
from itertools import count

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from batchloom.models import describe, load_model, load_tokenizer, stream_model
from batchloom.models.checkpoints import tensors
from batchloom.models.checkpoints.pinned import DECIDING
from batchloom.models.checkpoints.weight_file import WeightFile
from batchloom.models.errors import CheckpointError, DeviceError
from batchloom.models.families.table import FAMILIES

CHANGED = "is not the file that this job was planned with"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A checkpoint whose files were written an hour ago."""
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    for path in copy.iterdir():
        age(path)
    return copy


def age(path, seconds=3600):
    os.utime(path, (time.time() - seconds,) * 2)


def other_weights(folder, target):
    """Weights of the same shapes and file size with other values, at `target`."""
    weights = {name: tensor + 0.5 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, target, metadata={"format": "pt"})
    assert target.stat().st_size == (folder / "model.safetensors").stat().st_size
    return target


@pytest.fixture
def settled(monkeypatch):
    """Files count as written long ago: ctime cannot be set back."""
    monkeypatch.setattr("batchloom.models.checkpoints.weight_file.SETTLED_NANOSECONDS", -1)


def no_hashing(self):
    raise AssertionError(f"{self.name} is read for its hash")


@pytest.mark.usefixtures("settled")
def test_what_was_planned_is_loaded_without_reading_it_twice(folder, monkeypatch):
    pinned = describe(str(folder)).pinned
    monkeypatch.setattr(WeightFile, "sha256", no_hashing)
    ids = torch.tensor([[5, 6, 7, 2]])
    assert torch.equal(load_model(pinned)(ids), load_model(str(folder))(ids))
    assert torch.allclose(stream_model(pinned)(ids), load_model(pinned)(ids), atol=1e-4)


@pytest.mark.usefixtures("settled")
def test_replaced_weights_are_refused(folder, tmp_path):
    pinned = describe(str(folder)).pinned
    other_weights(folder, tmp_path / "other").replace(folder / "model.safetensors")
    for door in (load_model, stream_model):
        with pytest.raises(CheckpointError, match=rf"model\.safetensors {CHANGED}: its sha256 was"):
            door(pinned)
    load_model(str(folder))  # without a plan they are as good as any


@pytest.mark.usefixtures("settled")
def test_weights_written_over_with_the_same_size_and_time_are_refused(folder, tmp_path):
    """`cp --preserve`, and tools that give every file one date: the time of the change (ctime) tells."""
    path = folder / "model.safetensors"
    before = path.stat()
    pinned = describe(str(folder)).pinned
    path.write_bytes(other_weights(folder, tmp_path / "other").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(CheckpointError, match=CHANGED):
        load_model(pinned)


def test_weights_written_just_before_planning_are_hashed_at_the_start(folder, tmp_path):
    """Two writes within a clock's tick leave equal times, so the time of a young file is not trusted."""
    pinned = describe(str(folder)).pinned
    assert pinned.file("model.safetensors").version is None
    load_model(pinned)
    other_weights(folder, tmp_path / "other").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=CHANGED):
        load_model(pinned)


@pytest.mark.usefixtures("settled")
def test_a_nodes_own_copy_is_hashed_and_loaded(folder, tmp_path):
    """Other inode, other times, the same bytes: as on another node of a cluster."""
    pinned = pickle.loads(pickle.dumps(describe(str(folder)).pinned))
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    copy.rename(folder)
    load_model(pinned)


@pytest.mark.usefixtures("settled")
def test_every_rank_checks_its_own_files(folder, tmp_path, in_followers):
    """The follower finds other weights in the place where the leader finds the planned ones."""
    pinned = describe(str(folder)).pinned
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    other_weights(folder, elsewhere / "model.safetensors")
    in_followers(
        "import dataclasses\n"
        "from batchloom.models.checkpoints import hub\n"
        "opened = hub._open\n"
        f"hub._open = lambda uri, patience: dataclasses.replace(opened({str(elsewhere)!r}, patience), uri=uri)"
    )
    with pytest.raises(DeviceError, match=rf"Rank 1 of 2 failed: .*model\.safetensors {CHANGED}"):
        load_model(pinned, tensor_parallel=2)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_changed_configuration_is_refused(folder, name):
    pinned = describe(str(folder)).pinned
    raw = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(raw | {"scale_embedding": True, "no_repeat_ngram_size": 2}))
    with pytest.raises(CheckpointError, match=rf"{name.replace('.', '[.]')} {CHANGED}"):
        load_model(pinned)


def test_a_new_index_beside_planned_weights_is_refused(folder):
    pinned = describe(str(folder)).pinned
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    index = {"weight_map": {"model.shared.weight": "other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json is not the file .* was none, as there was no such file"):
        load_model(pinned)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "config.json"])
def test_a_changed_tokenizer_is_refused(folder, name):
    pinned = describe(str(folder)).pinned
    assert load_tokenizer(pinned).encode_batch(["An archive."]) == load_tokenizer(folder).encode_batch(["An archive."])
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    with pytest.raises(CheckpointError, match=CHANGED):
        load_tokenizer(pinned)


def test_a_tokenizer_file_that_was_not_there_is_refused(folder):
    pinned = describe(str(folder)).pinned
    (folder / "added_tokens.json").write_text('{"<new>": 400}')
    with pytest.raises(CheckpointError, match=rf"added_tokens\.json {CHANGED}"):
        load_tokenizer(pinned)


@pytest.fixture
def while_loading(monkeypatch):
    """while_loading({5: act}): `act()` before the fifth piece of a tensor is read, and so on."""

    def prepare(acts):
        read, coming = tensors.read_bytes, dict(acts)
        numbers = count(1)

        def acting(file, start, stop):
            coming.pop(next(numbers), lambda: None)()
            return read(file, start, stop)

        monkeypatch.setattr(tensors, "read_bytes", acting)
        return coming

    return prepare


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("is_pinned", [True, False])
@pytest.mark.parametrize("how", ["renamed", "written over"])
def test_weights_that_change_while_they_are_loaded_are_refused(folder, tmp_path, while_loading, how, is_pinned):
    """They could be a mixture of two files."""
    path, other = folder / "model.safetensors", other_weights(folder, tmp_path / "other")

    def write_over():
        with path.open("r+b") as opened:
            opened.write(other.read_bytes())

    pinned = describe(str(folder)).pinned
    coming = while_loading({5: lambda: other.replace(path) if how == "renamed" else write_over()})
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_model(pinned if is_pinned else str(folder))
    assert not coming


@pytest.mark.usefixtures("settled")
def test_weights_swapped_and_put_back_while_they_are_loaded_are_refused(folder, tmp_path, while_loading):
    path, other, aside = folder / "model.safetensors", other_weights(folder, tmp_path / "other"), tmp_path / "aside"

    def swap():
        path.rename(aside)
        other.rename(path)

    def put_back():
        path.rename(other)
        aside.rename(path)

    pinned = describe(str(folder)).pinned
    coming = while_loading({5: swap, 9: put_back})
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_model(pinned)
    assert not coming


@pytest.fixture
def stored(folder):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{folder}/", "/pins/tiny/", recursive=True)
    yield filesystem
    filesystem.rm("/pins", recursive=True)


def test_a_store_that_has_other_weights_is_refused_without_reading_them(stored, folder, tmp_path, monkeypatch):
    pinned = describe("memory://pins/tiny").pinned
    monkeypatch.setattr(WeightFile, "sha256", no_hashing)
    load_model(pinned)
    stored.pipe("/pins/tiny/model.safetensors", other_weights(folder, tmp_path / "other").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{CHANGED}: it was \d+ bytes, created .*; it is \d+ bytes, created"):
        load_model(pinned)


def test_a_store_whose_weights_change_while_they_are_loaded_is_refused(stored, folder, tmp_path, while_loading):
    pinned = describe("memory://pins/tiny").pinned
    other = other_weights(folder, tmp_path / "other").read_bytes()
    coming = while_loading({5: lambda: stored.pipe("/pins/tiny/model.safetensors", other)})
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_model(pinned)
    assert not coming


def test_all_files_that_a_family_puts_into_the_fingerprint_are_pinned():
    for family in FAMILIES.values():
        assert set(family.tokenizer.fingerprinted) <= set(DECIDING)
