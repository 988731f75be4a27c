"""Scores of targets given their sources: single passes beside transformers, in turns, in one process.

bart-base sizes with random weights. Pairs are lines of two files (premises and hypotheses of snli) read by a tokenizer,
or random tokens of such lengths, three targets a source as there. The rival sorts by length, pads, gives labels of -100
to padding and sums what its loss is made of; it tries several batch sizes, alone and with a worker for each thread. Its
best counts.

    python -m benchmarks.scoring [--sources FILE --targets FILE --tokenizer FOLDER] [--pairs 1000] [--rounds 3]
"""

import argparse
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from batchloom.models import load_model, load_tokenizer
from batchloom.models.single_pass.single_pass import SinglePass
from batchloom.models.threads import side_by_side
from benchmarks import record
from benchmarks.single_pass import BATCH_SIZES, SIZES, Setting, timed

LARGER = (128, 256)
SAMPLE = 128  # pairs that a setting is tried on
Pair = tuple[list[int], list[int]]


def random_pairs(num_pairs: int) -> list[Pair]:
    """Return pairs with the lengths of snli's: 18 and 11 tokens with special ones, three targets a source."""
    chance = random.Random(0)

    def text(mean: int) -> list[int]:
        return [0, *(chance.randrange(4, 50000) for _ in range(max(3, round(chance.gauss(mean, mean / 3))))), 2]

    sources = [text(16) for _ in range(-(-num_pairs // 3))]
    return [(sources[number // 3], text(9)) for number in range(num_pairs)]


def read_pairs(sources: str, targets: str, tokenizer: str, num_pairs: int) -> list[Pair]:
    """Return the first pairs of two files' lines as tokens."""
    lines = [Path(name).read_text(encoding="utf-8").splitlines()[:num_pairs] for name in (sources, targets)]
    loaded = load_tokenizer(tokenizer)
    return list(zip(*(loaded.encode_batch(own) for own in lines), strict=True))


def reference_scores(model: torch.nn.Module, pairs: Sequence[Pair], setting: Setting, device: str) -> Tensor:
    """Return transformers' log-likelihood of each target: its mean loss is over a batch, so it is summed by rows."""
    order = sorted(range(len(pairs)), key=lambda row: -sum(map(len, pairs[row])))
    scores = torch.empty(len(pairs))
    batches = iter([order[first : first + setting.batch_size] for first in range(0, len(order), setting.batch_size)])

    def padded(lists: Sequence[list[int]], value: int) -> Tensor:
        longest = max(map(len, lists))
        return torch.tensor([own + [value] * (longest - len(own)) for own in lists], device=device)

    @torch.inference_mode()
    def work() -> None:
        for rows in batches:
            ids, labels = padded([pairs[row][0] for row in rows], 1), padded([pairs[row][1] for row in rows], -100)
            decoder_ids = model.prepare_decoder_input_ids_from_labels(labels)
            mask = (ids != 1).long()
            logits = model(ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False).logits.float()
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
            scores[rows] = -losses.sum(1).cpu()

    side_by_side(work, setting.num_workers, torch.get_num_threads())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources")
    parser.add_argument("--targets")
    parser.add_argument("--tokenizer")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    record.add_options(parser)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if arguments.sources:
        pairs = read_pairs(arguments.sources, arguments.targets, arguments.tokenizer, arguments.pairs)
    else:
        pairs = random_pairs(arguments.pairs)
    num_source, num_target = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    num_distinct = len({tuple(source) for source, _ in pairs})
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, device {device}, {arguments.dtype}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    print(f"{len(pairs)} pairs, {num_distinct} sources; tokens {num_source} of sources, {num_target} of targets")

    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    reference = transformers.BartForConditionalGeneration(transformers.BartConfig(**SIZES)).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        single_pass = SinglePass(load_model(folder, dtype=arguments.dtype, device=device))
    reference.to(device)

    workers = sorted({1, torch.get_num_threads() if device == "cpu" else 1})
    settings = [Setting(size, count) for count in workers for size in (*BATCH_SIZES[2:], *LARGER)]
    tried = {}
    for setting in settings:
        some = pairs[: max(SAMPLE, 2 * setting.batch_size * setting.num_workers)]
        reference_scores(reference, some[: setting.batch_size], setting, device)  # warm up
        seconds = timed(partial(reference_scores, reference, some, setting, device), device).wall_seconds
        tried[setting] = seconds / len(some)
        print(f"transformers, {setting}: {len(some) / seconds:7.1f} rows/s", flush=True)
    best = min(tried, key=lambda setting: tried[setting])
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]

    def ours() -> Tensor:
        return torch.tensor([scores.total for scores in single_pass.score(sources, targets)])

    ours()  # warm up
    ratios, differences = [], []
    speeds: dict[str, list[float]] = {"batchloom": [], "transformers": []}
    for _ in range(arguments.rounds):
        here = timed(ours, device)
        there = timed(partial(reference_scores, reference, pairs, best, device), device)
        ratios.append(there.wall_seconds / here.wall_seconds)
        speeds["batchloom"].append(len(pairs) / here.wall_seconds)
        speeds["transformers"].append(len(pairs) / there.wall_seconds)
        a_token = (here.result - there.result).abs() / torch.tensor([len(target) for target in targets])
        differences.append(float(a_token.max()))
        print(
            f"here {len(pairs) / here.wall_seconds:7.1f} rows/s, transformers {best} "
            f"{len(pairs) / there.wall_seconds:7.1f}: {ratios[-1]:.2f} times; largest difference of a mean loss "
            f"{differences[-1]:.1e}",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.2f} times")
    about = {"batchloom": {}, "transformers": {"settings": str(best)}}
    figures = [
        record.speed(system, own, "rows/s", dtype=arguments.dtype, **about[system]) for system, own in speeds.items()
    ]
    largest = "largest difference of a target's mean loss"
    figures.append(record.Figure(system="batchloom", what=largest, value=max(differences), unit="nats a token"))
    where = "snli" if arguments.sources else "random tokens"
    title = f"bart-base, scores of {len(pairs):,} targets ({where}, {num_distinct} sources)"
    workload = {
        "model": "bart-base's sizes, random weights",
        "pairs": len(pairs),
        "sources": num_distinct,
        "prompt_tokens": num_source,
        "target_tokens": num_target,
        "threads": arguments.threads,
    }
    record.write(arguments.results, record.named("scoring", device), title, workload, figures, device)


if __name__ == "__main__":
    main()
