"""How many rows get other tokens when what runs beside them changes: batch size, order of arrival, nobody at all.

    python -m benchmarks.batch_independence --documents 32 --threads 2 [--model folder]

No decision of the engine depends on neighbours, and in float32 no token does. In bfloat16 a product of 4 rows may round
otherwise than one of 128 (by the processor's library), and where two tokens are nearly as likely that is enough. Random
weights (the default, sizes of bart-base) leave many tokens nearly as likely; a trained checkpoint (--model) is surer of
itself. Ends with status 1 if a row differs in float32.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from batchloom.models import Engine, GenerationParams, load_model
from benchmarks import record
from benchmarks.engine import Workload, checkpoint, corpus

SEARCHES = {
    "greedy": {"num_beams": 1},
    "beam 4": {"num_beams": 4, "no_repeat_ngram_size": 3},
    "sampling": {"num_beams": 1, "do_sample": True, "top_p": 0.95, "top_k": 0},
}
Prompts = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint's folder; default: random weights at the sizes of bart-base")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--mean-length", type=int, default=120)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "batchloom-benchmark")
    record.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.model or str(checkpoint("bart-base", options.folder))
    print(f"{folder}: {options.documents} documents, {options.new_tokens} new tokens, torch {torch.__version__}")
    print("rows with other tokens than in one batch of all, in order:")
    num_differing, figures = {}, []
    for dtype in options.dtypes:
        model = load_model(folder, dtype=dtype, device="cpu")
        prompts, _ = corpus(Workload("", options.mean_length, options.new_tokens), options.documents)
        prompts = [[token % model.config.vocab_size for token in prompt] for prompt in prompts]
        for name, search in SEARCHES.items():
            params = GenerationParams(max_new_tokens=options.new_tokens, min_new_tokens=options.new_tokens, **search)
            everything = range(len(prompts))
            wanted = answers(model, prompts, params, everything, 4 * len(prompts))
            backwards = answers(model, prompts, params, everything[::-1], 12)
            alone = {row: answers(model, prompts, params, [row], 4)[row] for row in everything}
            num_differing[dtype, name] = [
                sum(wanted[row] != other[row] for row in everything) for other in (backwards, alone)
            ]
            few, one = num_differing[dtype, name]
            print(f"{dtype:10s} {name:10s} backwards in 12 slots {few / len(prompts):7.1%}", end="   ")
            print(f"each alone {one / len(prompts):7.1%}", flush=True)
            for how, count in (("backwards in 12 slots", few), ("each alone", one)):
                what, value = f"{name}: rows with other tokens, {how}", count / len(prompts)
                figures.append(record.Figure(system="batchloom", what=what, value=value, unit="share", dtype=dtype))
    weights = Path(options.model).name if options.model else "bart-base's sizes, random weights"
    title = f"tokens beside other neighbours, {options.documents} documents, {options.new_tokens} new"
    workload = {"model": weights, "documents": options.documents, "mean_prompt": options.mean_length}
    workload |= {"new_tokens": options.new_tokens, "threads": options.threads}
    record.write(options.results, "batch_independence", title, workload, figures)
    if any(sum(counts) for (dtype, _), counts in num_differing.items() if dtype == "float32"):
        sys.exit(1)


def answers(
    model: torch.nn.Module, prompts: Prompts, params: GenerationParams, rows: list[int] | range, max_slots: int
) -> dict[int, list[int]]:
    """The tokens of some rows, which arrive in this order."""
    engine = Engine(model, max_slots=max_slots)
    for row in rows:
        engine.add(row, prompts[row], params, seed=row)
    found = {}
    while engine.num_unfinished:
        found |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    return found


if __name__ == "__main__":
    main()
