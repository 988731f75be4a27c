"""Zero-shot classification from texts to scores: the task's own stages beside transformers' pipeline, in one process.

    python -m benchmarks.zero_shot [--texts 64] [--labels 8,32,128] [--width 256] [--threads 1]

A BART with random weights; texts of log-normal length (mean about 60 tokens), a label of two words. Both sides begin
with texts and end with sorted scores. The rival's best batch size is found at the first number of labels and kept. On a
CPU that others use too, wall time says little: one thread and processor time are the measure.
"""

import argparse
import math
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of a tokenizer would hide from processor time

import pyarrow as pa
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from batchloom import models
from batchloom.pipelines.config import InputConfig
from batchloom.pipelines.fields import ERROR_FIELD, ERROR_TYPE
from batchloom.pipelines.planning.spans import Span
from batchloom.pipelines.planning.units import Unit
from batchloom.pipelines.replicas.replica import start_replica
from batchloom.pipelines.stages.infer import answer
from batchloom.pipelines.stages.tokenize import Tokenize, bucket_tokens
from batchloom.pipelines.stages.work import Work
from batchloom.pipelines.stages.write import Write
from batchloom.pipelines.tasks import TaskSpec, create_task
from benchmarks import record

BATCH_SIZES = (1, 4, 16, 64)
TARGET = 2.0
CLASSES = ["contradiction", "neutral", "entailment"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--labels", default="8,32,128")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    record.add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    words = ["".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=2 + seed % 7)) for seed in range(2000)]
    texts = make_texts(words, arguments.texts)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} thread, torch {torch.__version__}, "
          f"transformers {transformers.__version__}; width {arguments.width}, {len(texts)} texts")  # fmt: skip
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, words, arguments.width)
        batch_sizes, rival, first = BATCH_SIZES, make_rival(folder), None
        for count in map(int, arguments.labels.split(",")):
            labels = [f"{words[2 * i]} {words[2 * i + 1]}" for i in range(count)]
            theirs = {size: processor_time(partial(rival, texts, labels, size)) for size in batch_sizes}
            best = min(theirs, key=lambda size: theirs[size][0])
            batch_sizes = (best,)
            ours, scores = processor_time(make_ours(folder, texts, {"candidate_labels": labels}, "float32"))
            difference = largest_difference(scores, theirs[best][1])
            first = first or ours / count
            print(
                f"{count:4} labels: transformers {theirs[best][0]:7.2f} s (batch size {best}), here {ours:7.2f} s, "
                f"{theirs[best][0] / ours:.2f} times (target {TARGET}); {ours / count / first:.2f} of the first time a "
                f"label; largest difference of a score {difference:.1e}",
                flush=True,
            )
            shared = {"what": f"speed with {count} labels", "unit": "rows/processor s", "dtype": "float32"}
            figures.append(record.Figure(system="batchloom", value=len(texts) / ours, **shared))
            settings, value = f"batches of {best}", len(texts) / theirs[best][0]
            figures.append(record.Figure(system="transformers", value=value, settings=settings, **shared))
            what, unit = f"largest difference of a score with {count} labels", "probability"
            figures.append(record.Figure(system="batchloom", what=what, value=difference, unit=unit))
    title = f"BART of width {arguments.width}, zero-shot classification of {len(texts)} texts"
    workload = {"texts": len(texts), "labels": arguments.labels, "width": arguments.width, "threads": arguments.threads}
    record.write(arguments.results, "zero_shot", title, workload, figures)


def make_texts(words: list[str], num_texts: int) -> list[str]:
    chance, spread = random.Random(0), 0.6
    lengths = [max(2, round(chance.lognormvariate(math.log(30) - spread**2 / 2, spread))) for _ in range(num_texts)]
    return [" ".join(chance.choices(words, k=length)) for length in lengths]


def make_checkpoint(folder: str, words: list[str], width: int) -> None:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [" ".join(words)],
        vocab_size=2000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    bpe.save_model(folder)
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=bpe.get_vocab_size(), d_model=width, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=width // 64, decoder_attention_heads=width // 64, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, max_position_embeddings=1024, init_std=0.1,
        id2label=dict(enumerate(CLASSES)), label2id={label: column for column, label in enumerate(CLASSES)},
    )  # fmt: skip
    transformers.BartForSequenceClassification(config).eval().save_pretrained(folder)


def make_rival(folder: str) -> Callable[[list[str], list[str], int], list[dict[str, float]]]:
    tokenizer = transformers.BartTokenizerFast.from_pretrained(folder)
    model = transformers.BartForSequenceClassification.from_pretrained(folder)
    pipeline = transformers.pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)

    def classify(texts: list[str], labels: list[str], batch_size: int) -> list[dict[str, float]]:
        found = pipeline(texts, labels, batch_size=batch_size)
        return [dict(zip(one["labels"], one["scores"], strict=True)) for one in found]

    return classify


def make_ours(
    folder: str, texts: list[str], options: dict[str, object], dtype: str
) -> Callable[[], list[dict[str, float]]]:
    """The stages of a job for one unit, without Ray between them; the model is loaded before.

    Args:
        folder: The checkpoint.
        texts: A row each.
        options: Those of the task.
        dtype: In which the model computes.
    """
    spec = TaskSpec(
        task="zero-shot-classification",
        input=InputConfig(paths=()),
        options=options,
        generation={},
        checkpoint=models.describe(folder),
    )
    task, tokenizer = create_task(spec), models.load_tokenizer(folder)
    pinned = spec.checkpoint.pinned
    replica = start_replica(
        task=task, model=pinned, dtype=dtype, device="cpu", num_threads=0, max_batch_tokens=16384, seed=0
    )
    unit = Unit("unit", ((0, len(texts)),), (Span("texts", "", 0, len(texts)),), is_whole=False)
    rows = pa.table({"text": texts}).append_column(ERROR_FIELD, pa.nulls(len(texts), ERROR_TYPE))
    tokenize, write = (
        Tokenize(task, pinned, bucket_tokens(task, 16384, "cpu"), False),
        Write(task, pinned, None),
    )  # type: ignore[arg-type]

    def classify() -> list[dict[str, float]]:
        work = tokenize.prepare(Work(unit=unit, rows=rows), tokenizer)
        assert work.requests is not None
        results = answer(replica, task, unit, work.requests, tokenizer)
        part = write.finish(work.with_results(results, {}), tokenizer)
        return [dict(zip(row["labels"], row["scores"], strict=True)) for row in part.to_pylist()]

    return classify


def processor_time(run: Callable[[], list[dict[str, float]]]) -> tuple[float, list[dict[str, float]]]:
    began = time.process_time()
    scores = run()
    return time.process_time() - began, scores


def largest_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    return max(abs(mine[label] - other[label]) for mine, other in zip(ours, theirs, strict=True) for label in mine)


if __name__ == "__main__":
    main()
