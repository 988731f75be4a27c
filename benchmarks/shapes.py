"""Rows a second over the batch and the length of texts: the engine beside transformers in static batches.

    python -m benchmarks.shapes --lengths 32 128 512 --batches 1 4 16 64

bart-base's sizes with random weights in bfloat16, greedy. All texts of a point have one length and get as many new
tokens, so nobody pads and nobody waits: what is left is how well a batch uses the machine. A point is a batch of texts,
or several small ones; the better of two rounds counts, which alternate between the systems. `python -m benchmarks.plot`
draws it.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.engine import Run, Workload, checkpoint, clocked, transformers_static

LEAST_TEXTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="tokens of a text")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "batchloom-benchmark")
    record.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = checkpoint("bart-base", options.folder)
    engine = Ours(folder, options.new_tokens)
    figures = []
    for length in options.lengths:
        for batch in options.batches:
            prompts = texts(max(LEAST_TEXTS, batch), length)
            work, lengths = Workload("bart-base", length, options.new_tokens), [options.new_tokens] * len(prompts)
            (rival,) = transformers_static(folder, work, prompts, lengths, (batch,)).values()
            runs: dict[str, Run] = {"batchloom": partial(engine.run, prompts, batch), "transformers": rival}
            speeds: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    speeds[name].append(len(prompts) / clocked(run, options.threads)[0])
            for name, own in speeds.items():
                print(f"{length} tokens, batch {batch}, {name}: {max(own):.2f} rows/s", flush=True)
                place = {"tokens": length, "batch": batch}
                shared = {"what": "speed at a point", "unit": "rows/s", "dtype": "bfloat16"}
                figures.append(record.Figure(system=name, value=max(own), rounds=tuple(own), at=place, **shared))
    title = f"bart-base, greedy, {options.new_tokens} new, over batch and length"
    workload = {"checkpoint": "bart-base", "weights": "random", "new_tokens": options.new_tokens}
    record.write(options.results, "shapes", title, workload | {"threads": options.threads}, figures)


class Ours:
    """One model for all points."""

    def __init__(self, folder: Path, num_new: int) -> None:
        from batchloom.models import GenerationParams, load_model

        self.model = load_model(str(folder), dtype="bfloat16", device="cpu")
        self.params = GenerationParams(max_new_tokens=num_new, min_new_tokens=num_new, num_beams=1)

    def run(self, prompts: list[list[int]], batch: int) -> None:
        from batchloom.models import Engine

        answers = Engine(self.model, max_slots=batch).generate(prompts, self.params)
        assert len(answers) == len(prompts)


def texts(number: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, 40_000, (number, length), generator=generator).tolist()


if __name__ == "__main__":
    main()
