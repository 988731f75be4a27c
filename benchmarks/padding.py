"""Padding over real tokens on public texts: the positions that attention computes in the buckets of Tokenize.

    python -m benchmarks.padding [--data ../shared/data] [--rows-per-unit 1024]

No model is run, as padding follows from lengths: qmsum in chunks of 1,024 tokens for an engine, the others as pairs or
texts for single passes. Counted is attention by groups (float32, and whatever runs on an accelerator); the products of
bfloat16 models on a CPU, ALiBi's excepted, do not pad. `as one grid` is what padding each bucket to its longest row
would compute.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchloom import models
from batchloom.models.layers.grouped_attention import GroupedAttention
from batchloom.models.single_pass.buckets import CPU_BATCH_TOKENS, DEVICE_BATCH_TOKENS, cut_into_buckets
from batchloom.pipelines.tasks.chunks import chunks
from benchmarks import record

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.03
ENGINE_TOKENS = 16384


@dataclass(frozen=True)
class Corpus:
    """Lengths of the requests that each row of a corpus becomes, and the budgets of its buckets."""

    name: str
    rows: list[list[int]]
    budgets: tuple[int, ...] = (CPU_BATCH_TOKENS, DEVICE_BATCH_TOKENS)


@dataclass(frozen=True)
class Padding:
    """Padded over real tokens."""

    by_groups: float
    as_one_grid: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows-per-unit", type=int, default=1024)
    record.add_options(parser)
    arguments = parser.parse_args()
    if not arguments.data.exists():
        print(f"No corpora in {arguments.data}: give --data FOLDER. Nothing was measured.")
        return
    print(f"{'corpus':10} {'requests':>8} {'tokens':>10} {'bucket':>7} {'by groups':>10} {'as one grid':>12}")
    figures = []
    for corpus in corpora(arguments.data):
        for budget in corpus.budgets:
            lengths = [length for row in corpus.rows for length in row]
            found = padding_of(corpus.rows, arguments.rows_per_unit, budget)
            print(
                f"{corpus.name:10} {len(lengths):8} {sum(lengths):10} {budget:7} {found.by_groups:10.3f} "
                f"{found.as_one_grid:12.3f}{'' if found.by_groups <= TARGET else f'   above {TARGET}'}"
            )
            own = {"unit": "times", "settings": f"buckets of {budget} tokens"}
            what = f"padded over real tokens of {corpus.name}"
            figures.append(record.Figure(system="batchloom", what=what, value=found.by_groups, **own))
            figures.append(record.Figure(system="one grid a bucket", what=what, value=found.as_one_grid, **own))
    workload = {"rows_per_unit": arguments.rows_per_unit, "tokenizer": "bart-large-cnn"}
    record.write(arguments.results, "padding", "padding in attention, four public corpora", workload, figures)


def padding_of(rows: Sequence[Sequence[int]], rows_per_unit: int, budget: int) -> Padding:
    """Return the padding of all buckets of all units together."""
    num_tokens = num_grouped = num_grid = 0
    for first in range(0, len(rows), rows_per_unit):
        lengths = [length for row in rows[first : first + rows_per_unit] for length in row]
        for bucket in cut_into_buckets(lengths, budget):
            own = [lengths[index] for index in bucket]
            num_tokens += sum(own)
            num_grouped += GroupedAttention(own, own, causal=False).num_positions
            num_grid += len(own) * max(own)
    return Padding(num_grouped / num_tokens, num_grid / num_tokens)


def corpora(data: Path) -> Iterator[Corpus]:
    """Yield the public corpora, tokenized as bart-large-cnn does."""
    tokenizer = models.load_tokenizer(str(data / "tokenizers/bart-large-cnn"))
    meetings = [
        "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in json.loads(line)["meeting_transcripts"])
        for line in (data / "corpora/qmsum/ALL_jsonl_val.jsonl").read_text().splitlines()
    ]
    pieces = [chunks(meeting, tokenizer, "", 1024) for meeting in meetings]
    yield Corpus("qmsum", [[len(ids) for ids in tokenizer.encode_batch(own)] for own in pieces], (ENGINE_TOKENS,))
    paragraphs = [
        paragraph
        for article in json.loads((data / "corpora/xquad/xquad.en.json").read_text())["data"]
        for paragraph in article["paragraphs"]
    ]
    asked = [(question["question"], paragraph["context"]) for paragraph in paragraphs for question in paragraph["qas"]]
    yield Corpus("xquad", _lengths(tokenizer, *map(list, zip(*asked, strict=True))))
    premises, hypotheses = ((data / "corpora/snli" / name).read_text().splitlines() for name in ("s1.dev", "s2.dev"))
    yield Corpus("snli", _lengths(tokenizer, premises, hypotheses))
    blocks = [block for block in (data / "corpora/wikiann/en.dev").read_text().split("\n\n") if block.strip()]
    words = [[line.split("\t")[0].removeprefix("en:") for line in block.splitlines()] for block in blocks]
    yield Corpus("wikiann", _lengths(tokenizer, [" ".join(own) for own in words]))


def _lengths(tokenizer: models.Tokenizer, texts: list[str], pairs: list[str] | None = None) -> list[list[int]]:
    return [[len(ids)] for ids in tokenizer.encode_batch(texts, pairs)]


if __name__ == "__main__":
    main()
