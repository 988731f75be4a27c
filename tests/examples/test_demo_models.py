"""The demo's model gives what transformers gives with it, and is small."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers

import models

ROOT = Path(__file__).resolve().parents[2]
SUMMARIZER = ROOT / "examples/demo_models/docs-bart-mini"
MAX_BYTES = 30_000_000
NUM_TEXTS = 24


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        from docstrings import corpus

        shards = corpus(NUM_TEXTS)
    return [text for shard in shards for text in pq.read_table(io.BytesIO(shard))["text"].to_pylist()]


def test_the_model_is_small() -> None:
    assert sum(file.stat().st_size for file in SUMMARIZER.iterdir()) < MAX_BYTES


def test_its_tokenizer_is_the_one_that_transformers_loads(texts: list[str]) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(SUMMARIZER)
    assert models.load_tokenizer(SUMMARIZER).encode_batch(texts) == reference(texts)["input_ids"]


def test_summaries_are_those_of_transformers_generate(texts: list[str]) -> None:
    tokenizer, model = models.load_tokenizer(SUMMARIZER), models.load_model(str(SUMMARIZER), dtype="float32")
    prompts = [[*ids[:-1][:255], ids[-1]] for ids in tokenizer.encode_batch(texts)]
    answers = models.Engine(model).generate(prompts, models.GenerationParams())
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(SUMMARIZER, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = reference.generate(torch.tensor([prompt]))[0].tolist()
        assert answer.outputs[0].token_ids == expected[1:]  # theirs begins with the decoder's start token
