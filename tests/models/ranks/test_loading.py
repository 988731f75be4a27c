"""Ranks that load one model: each reads its share, and the failure of one is told by all."""

import time

import fsspec
import pytest
import torch
import torch.multiprocessing
import transformers
from fsspec.implementations.dirfs import DirFileSystem

from batchloom.models.checkpoints import tensors
from batchloom.models.checkpoints.loading import load_for_rank, load_model
from batchloom.models.errors import CheckpointError, DeviceError
from batchloom.models.footprint import Footprint
from batchloom.models.ranks.group import SINGLE, Collectives, TensorParallel

WIDTH = {"d_model": 64, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
BART = transformers.BartConfig(vocab_size=2001, max_position_embeddings=32, **WIDTH, **HEADS)
BLOOM = transformers.BloomConfig(vocab_size=2001, hidden_size=64, n_layer=2, n_head=4)
REFERENCES = ((transformers.BartForConditionalGeneration, BART), (transformers.BloomForCausalLM, BLOOM))


class ElsewhereFileSystem(DirFileSystem):
    """The local disk, under a name that makes it a store: read by ranges, from several threads."""

    protocol = "elsewhere"

    def __init__(self, **options):
        super().__init__(path="/", fs=fsspec.filesystem("file"), **options)


def load_counting(folder, group):
    """The model, and the bytes of tensors that were asked for."""
    num_read = 0
    read = tensors.read_bytes

    def counted(file, start, stop):
        nonlocal num_read
        num_read += stop - start
        return read(file, start, stop)

    tensors.read_bytes = counted
    try:
        return load_for_rank(folder, None, "float32", torch.device("cpu"), group), num_read
    finally:
        tensors.read_bytes = read


def run_rank(rank, size, folders, meeting, piece_bytes):
    torch.set_num_threads(1)
    tensors.PIECE_BYTES = piece_bytes
    fsspec.register_implementation("elsewhere", ElsewhereFileSystem)
    collectives = Collectives(
        torch.distributed.FileStore(f"{meeting}/file", size), rank, size, torch.device("cpu")
    ).join()
    group = TensorParallel(rank=rank, size=size, collectives=collectives)
    found = []
    for folder in folders:
        model, num_read = load_counting(folder, group)
        logits = model(torch.arange(4, 20).view(2, 8))
        found.append((num_read, sum(p.nbytes for p in model.parameters()), logits))
    torch.save(found, f"{meeting}/{rank}.pt")
    group.collectives.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A BART and a BLOOM."""
    torch.manual_seed(0)
    made = []
    for reference, config in REFERENCES:
        made.append(str(tmp_path_factory.mktemp("model")))
        reference(config).save_pretrained(made[-1])
    return made


@pytest.mark.parametrize(
    ("size", "scheme", "piece_bytes"),
    [(2, "", 1 << 25), pytest.param(4, "", 1 << 25, marks=pytest.mark.slow), (2, "elsewhere://", 3000)],
)
def test_each_rank_reads_and_holds_its_share(folders, tmp_path, size, scheme, piece_bytes):
    """One n-th and five percent: norms, biases and positions are read whole. Small pieces: several a tensor."""
    uris = [scheme + folder for folder in folders]
    torch.multiprocessing.spawn(run_rank, (size, uris, str(tmp_path), piece_bytes), nprocs=size)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for folder, by_rank in zip(folders, zip(*found, strict=True), strict=True):
        whole, num_whole = load_counting(folder, SINGLE)
        predicted = Footprint(config=whole.config, architecture=type(whole).__name__, num_ranks=size)
        expected = whole(torch.arange(4, 20).view(2, 8))
        for rank, (num_read, num_held, logits) in enumerate(by_rank):
            assert num_read <= (1 / size + 0.05) * num_whole
            assert num_held <= (1 / size + 0.05) * sum(p.nbytes for p in whole.parameters())
            assert num_held == predicted.weight_bytes
            assert num_read == predicted.weight_bytes or rank == size - 1  # whose part of the vocabulary is smaller
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_ranks_compare_tied_copies_in_parts(tmp_path):
    """The last row alone differs, which the leader does not read: both must know."""
    torch.manual_seed(0)
    reference = transformers.BloomForCausalLM(BLOOM)
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    state["lm_head.weight"][-1] += 1.0
    BLOOM.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.multiprocessing.spawn(run_rank, (2, [str(tmp_path)], str(tmp_path), 1 << 25), nprocs=2)
    expected = load_model(str(tmp_path))(torch.arange(4, 20).view(2, 8))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt")[0][2], expected, atol=1e-4, rtol=1e-4)


def test_a_read_that_fails_on_one_rank_ends_all_of_them_with_its_words(folders, in_followers):
    """The others wait for that rank's columns; they must not wait for long."""
    in_followers(
        "from batchloom.models.checkpoints import tensors\n"
        "def broken(*arguments):\n"
        "    raise OSError('the disk is gone')\n"
        "tensors.read_bytes = broken"
    )
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"Rank 1 of 2 failed: OSError: the disk is gone"):
        load_model(folders[0], tensor_parallel=2)
    assert time.monotonic() - began < 30


def test_a_read_that_fails_on_the_leader_is_raised_as_it_is(folders, monkeypatch):
    def broken(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr("batchloom.models.checkpoints.tensors.read_bytes", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        load_model(folders[1], tensor_parallel=2)


def test_tensors_that_do_not_fit_are_all_named_before_anything_is_read(folders):
    """The file has no tensors for this head."""
    with pytest.raises(CheckpointError, match=r"4 of \d+ tensors"):
        load_model(folders[0], architecture="BartForSequenceClassification", tensor_parallel=2)
