"""The demo's models give what transformers gives with them, and are small."""

import io
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers

from batchloom import models

ROOT = Path(__file__).resolve().parents[2]
SUMMARIZER = ROOT / "examples/demo_models/docs-bart-mini"
CLASSIFIER = ROOT / "examples/demo_models/docs-bart-mini-mnli"
MAX_BYTES = 60_000_000  # of both: a clone should stay quick
NUM_TEXTS = 24


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        from docstrings import corpus

        shards = corpus(NUM_TEXTS)
    return [text for shard in shards for text in pq.read_table(io.BytesIO(shard))["text"].to_pylist()]


def test_the_models_are_small() -> None:
    assert sum(file.stat().st_size for model in (SUMMARIZER, CLASSIFIER) for file in model.iterdir()) < MAX_BYTES


@pytest.mark.parametrize("model", [SUMMARIZER, CLASSIFIER], ids=lambda model: model.name)
def test_the_tokenizer_is_the_one_that_transformers_loads(model: Path, texts: list[str]) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(model)
    assert models.load_tokenizer(model).encode_batch(texts) == reference(texts)["input_ids"]


def test_summaries_are_those_of_transformers_generate(texts: list[str]) -> None:
    tokenizer, model = models.load_tokenizer(SUMMARIZER), models.load_model(str(SUMMARIZER), dtype="float32")
    prompts = [[*ids[:-1][:255], ids[-1]] for ids in tokenizer.encode_batch(texts)]
    answers = models.Engine(model).generate(prompts, models.GenerationParams())
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(SUMMARIZER, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = reference.generate(torch.tensor([prompt]))[0].tolist()
        assert answer.outputs[0].token_ids == expected[1:]  # theirs begins with the decoder's start token


def test_topics_are_those_of_the_transformers_pipeline(texts: list[str]) -> None:
    labels, template = ["dates", "plotting", "file system"], "This text is about {}."
    pipeline = transformers.pipeline("zero-shot-classification", model=str(CLASSIFIER), dtype=torch.float32)
    expected = pipeline(texts, labels, hypothesis_template=template)
    tokenizer, model = models.load_tokenizer(CLASSIFIER), models.load_model(str(CLASSIFIER), dtype="float32")
    hypotheses = tokenizer.encode_batch([template.format(label) for label in labels], add_special_tokens=False)
    pairs = []
    for text in tokenizer.encode_batch(texts, add_special_tokens=False):
        for hypothesis in hypotheses:
            room = model.max_positions - len(hypothesis) - 4
            pairs.append([0, *text[:room], 2, 2, *hypothesis, 2])
    logits = models.SinglePass(model).classify(pairs)[:, 1].unflatten(0, (len(texts), len(labels)))
    for own, other in zip(logits.softmax(1), expected, strict=True):
        theirs = dict(zip(other["labels"], other["scores"], strict=True))
        # float32 sums in another order: logits differ by about 1e-6, so do probabilities
        assert own.tolist() == pytest.approx([theirs[label] for label in labels], abs=1e-5)


def test_topics_are_those_of_the_packages_more_often_than_chance() -> None:
    """Weights that lost what they learnt would fail: four packages that training left out, twelve texts each."""
    topics = {
        "networkx": "graphs",
        "werkzeug": "web development",
        "urllib3": "networking",
        "pydantic": "data validation",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        from docstrings import INSTALLED, docstrings

        rows = [row for package in topics for row in islice(docstrings(INSTALLED, {package}), 12)]
    tokenizer, model = models.load_tokenizer(CLASSIFIER), models.load_model(str(CLASSIFIER), dtype="float32")
    hypotheses = [f"This text is about {topic}." for topic in topics.values()]
    # The first 300 characters: with the topic they fit into the model's 120 positions.
    pairs = [ids for row in rows for ids in tokenizer.encode_batch([row["text"][:300]] * len(topics), hypotheses)]
    best = models.SinglePass(model).classify(pairs)[:, 1].unflatten(0, (len(rows), len(topics))).argmax(1).tolist()
    right = [list(topics)[place] == row["module"].partition(".")[0] for place, row in zip(best, rows, strict=True)]
    assert sum(right) > len(right) / 2  # a quarter is chance
