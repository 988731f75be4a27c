"""Small real things for every test: a random checkpoint made by the reference implementation, and a corpus."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if TYPE_CHECKING:
    from tests.pretend_gpu import PretendGpu

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as Triton is imported: kernels run on the CPU
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Ray's file that says which cluster a process joins lies in the temporary folder: tests that run side by side would
    # join each other's.
    tempfile.tempdir = os.environ["TMPDIR"] = str(Path(tempfile.gettempdir()) / worker)
    Path(tempfile.tempdir).mkdir(exist_ok=True)

WORDS = [
    "archive",
    "batch",
    "column",
    "data",
    "engine",
    "folder",
    "garden",
    "harbour",
    "index",
    "journal",
    "kernel",
    "ledger",
    "model",
    "number",
    "output",
    "part",
    "query",
    "river",
    "shard",
    "table",
    "unit",
    "vector",
    "window",
    "yield",
    "zone",
]


def sentences(num: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Texts of 1 to `longest` words, always the same for a seed."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))).capitalize() + "." for _ in range(num)]


@pytest.fixture(scope="session")
def guard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard")


@pytest.fixture
def pretend_gpu(guard_folder: Path) -> Iterator["PretendGpu"]:
    """A GPU that computes on the CPU and counts what the host waits for."""
    from tests.pretend_gpu import pretending

    with pretending(guard_folder) as gpu:
        yield gpu


@pytest.fixture(scope="session")
def make_sentences() -> Callable[..., list[str]]:
    return sentences


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BART of 2 + 2 layers in hub format with bart-large-cnn's generation habits, scaled down."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import BartConfig, BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("checkpoint")
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(sentences(500), vocab_size=400, special_tokens=specials, show_progress=False)
    bpe.save_model(str(folder))
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=bpe.get_vocab_size(),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        init_std=0.5,  # logits far apart: float32 rounding does not decide which token wins
    )
    model = BartForConditionalGeneration(config).eval()
    model.generation_config.update(
        num_beams=4, max_length=24, min_length=6, no_repeat_ngram_size=3, length_penalty=2.0, early_stopping=True,
        forced_bos_token_id=0, forced_eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model.save_pretrained(folder)
    return str(folder)


def write_corpus(folder: Path) -> Path:
    """Three shards of 40, 25 and 10 rows with unlike row groups; columns id, text, note."""
    folder.mkdir()
    start = 0
    for name, num_rows, row_group_size in (("a", 40, 16), ("b", 25, 25), ("c", 10, 3)):
        texts = sentences(num_rows, seed=start + 1)
        ids = list(range(start, start + num_rows))
        table = pa.table({"id": ids, "text": texts, "note": [f"note {i}" if i % 3 else None for i in ids]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=row_group_size)
        start += num_rows
    return folder


@pytest.fixture(scope="session")
def make_corpus() -> Callable[[Path], Path]:
    return write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")
