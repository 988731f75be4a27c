"""How far bfloat16 and int8 agree with float32 on trained models: tokens and ROUGE of summaries, labels of texts.

    python -m benchmarks.agreement [--tasks summaries labels] [--texts 1000] [--dtypes float32 bfloat16 int8]

The demo's models over docstrings of packages that neither read in training (examples/demo_models/held_out.txt): those
installed here, at most --texts. Summaries as the checkpoint's own settings say, beam search; topics zero-shot among the
sixteen of the demo's figures, through the task's own stages. ROUGE is the F1 of rouge-score, in percent, against the
docstring's first line and against float32's summary.
"""

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from batchloom import models
from benchmarks import record
from benchmarks.zero_shot import make_ours

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "examples/demo_models"
ASKED = {"summaries": "docs-bart-mini", "labels": "docs-bart-mini-mnli"}
MEASURES = ("rouge1", "rouge2", "rougeL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=ASKED, default=list(ASKED), help="a result each")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8"], help="the first is compared to")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    record.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts, references = held_out(options.texts)
    print(f"{len(texts):,} held-out docstrings; torch {torch.__version__}", flush=True)
    for task in options.tasks:
        is_labels = task == "labels"
        figures = of_labels(texts, options.dtypes) if is_labels else of_summaries(texts, references, options.dtypes)
        for one in figures:
            print(f"{one.dtype:10s}{one.what:60s}{one.value:9.3f} {one.unit}")
        title = f"{task} beside those of {options.dtypes[0]}, {ASKED[task]}, {len(texts):,} held-out texts"
        workload = {"model": ASKED[task], "texts": len(texts), "threads": options.threads}
        record.write(options.results, f"agreement-{task}", title, workload, figures)


def held_out(num_texts: int) -> tuple[list[str], list[str]]:
    """Return docstrings' bodies and their first lines."""
    sys.path.insert(0, str(ROOT / "examples"))
    from docstrings import corpus

    shards = corpus(num_texts)
    if not shards:
        raise SystemExit(f"No package of {MODELS / 'held_out.txt'} is installed here: install networkx or pandas.")
    table = pa.concat_tables(pq.read_table(pa.BufferReader(shard)) for shard in shards)
    return table["text"].to_pylist(), table["reference"].to_pylist()


# ------------------------------------------------------------------------------------------------------- summaries


def of_summaries(texts: Sequence[str], references: Sequence[str], dtypes: Sequence[str]) -> list[record.Figure]:
    tokenizer = models.load_tokenizer(str(MODELS / ASKED["summaries"]))
    found = {dtype: summarized(texts, tokenizer, dtype) for dtype in dtypes}
    said = {dtype: tokenizer.decode_batch(own) for dtype, own in found.items()}
    base = dtypes[0]
    figures = []
    for dtype in dtypes:
        own = {"system": "batchloom", "dtype": dtype}
        figures += _rouge(said[dtype], references, "the first lines", own)
        if dtype != base:
            pairs = list(zip(found[dtype], found[base], strict=True))
            equal = sum(one == two for one, two in pairs) / len(pairs)
            figures.append(record.Figure(what=f"summaries with {base}'s tokens", value=equal, unit="share", **own))
            same, longer = (sum(count(one, two) for one, two in pairs) for count in (num_alike, longest))
            what = f"tokens before the first that differs from {base}'s"
            figures.append(record.Figure(what=what, value=same / longer, unit="share", **own))
            figures += _rouge(said[dtype], said[base], f"{base}'s summaries", own)
    return figures


def summarized(texts: Sequence[str], tokenizer: models.Tokenizer, dtype: str) -> list[list[int]]:
    """Return each summary's tokens."""
    model = models.load_model(str(MODELS / ASKED["summaries"]), dtype=dtype, device="cpu")
    most = model.config.max_positions
    prompts = [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in tokenizer.encode_batch(list(texts))]
    began = time.perf_counter()
    answers = models.Engine(model).generate(prompts, models.GenerationParams())
    print(f"summaries in {dtype}: {time.perf_counter() - began:.0f} s", flush=True)
    return [answer.outputs[0].token_ids for answer in answers]


def num_alike(one: Sequence[int], two: Sequence[int]) -> int:
    """Return how many tokens two answers begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def longest(one: Sequence[int], two: Sequence[int]) -> int:
    return max(len(one), len(two))


def _rouge(said: Sequence[str], wanted: Sequence[str], whose: str, own: dict[str, str]) -> list[record.Figure]:
    """Return the mean F1 of each measure."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(MEASURES, use_stemmer=True)  # as examples/demo_models/evaluate.py
    scores = [scorer.score(target, answer) for answer, target in zip(said, wanted, strict=True)]
    means = {name: sum(one[name].fmeasure for one in scores) / len(scores) for name in MEASURES}
    return [
        record.Figure(what=f"{name} against {whose}", value=100 * value, unit="%", **own)
        for name, value in means.items()
    ]


# ---------------------------------------------------------------------------------------------------------- labels


def of_labels(texts: list[str], dtypes: Sequence[str]) -> list[record.Figure]:
    sys.path.insert(0, str(MODELS))
    from topics import TEMPLATE, TOPICS

    options = {"candidate_labels": list(TOPICS), "hypothesis_template": TEMPLATE}
    found = {}
    for dtype in dtypes:
        classify = make_ours(str(MODELS / ASKED["labels"]), texts, options, dtype)
        began = time.perf_counter()
        found[dtype] = classify()
        print(f"labels in {dtype}: {time.perf_counter() - began:.0f} s", flush=True)
        gc.collect()
    base = found[dtypes[0]]
    figures = []
    for dtype in dtypes[1:]:
        own = {"system": "batchloom", "dtype": dtype}
        pairs = list(zip(found[dtype], base, strict=True))
        equal = sum(max(one, key=one.__getitem__) == max(two, key=two.__getitem__) for one, two in pairs) / len(pairs)
        off = [abs(one[label] - two[label]) for one, two in pairs for label in two]
        figures += [
            record.Figure(what=f"texts with {dtypes[0]}'s best label", value=equal, unit="share", **own),
            record.Figure(what="mean difference of a score", value=sum(off) / len(off), unit="probability", **own),
            record.Figure(what="largest difference of a score", value=max(off), unit="probability", **own),
        ]
    return figures


if __name__ == "__main__":
    main()
