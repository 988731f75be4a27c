"""What `batchloom plan --probe` says of a job beside what its run finds: rows, units, tokens, seconds.

    python -m benchmarks.forecast --corpora FOLDER          folders qmsum, snli and wikiann below it; see CORPORA
    python -m benchmarks.forecast --cases zero-shot --scale 0.25

Each case is planned and run in processes of their own, one after the other, so the machine should do nothing else. The
models are small: the demo's summarizer and classifier, and a tagger with random weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import record

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "examples/demo_models"
CORPORA = """qmsum/ALL_jsonl_val.jsonl (QMSum's validation set), snli/s2.dev (SNLI's hypotheses, one a line) and
wikiann/en.dev (WikiANN's English validation set: a token and a tag a line)"""
TARGETS = {"tokens": 0.02, "seconds": 0.25}


def turns(corpora: Path) -> Iterator[str]:
    """What one person says at a time in QMSum's meetings."""
    for line in (corpora / "qmsum/ALL_jsonl_val.jsonl").read_text().splitlines():
        for turn in json.loads(line)["meeting_transcripts"]:
            yield turn["content"]


def hypotheses(corpora: Path) -> Iterator[str]:
    yield from (corpora / "snli/s2.dev").read_text().splitlines()


def sentences(corpora: Path) -> Iterator[str]:
    for lines in (corpora / "wikiann/en.dev").read_text().strip().split("\n\n"):
        yield " ".join(line.partition("\t")[0].removeprefix("en:") for line in lines.splitlines())


def tagger(folder: Path) -> Path:
    """Make a token classifier: a BLOOM of two layers with random weights, and the summarizer's tokens."""
    import torch
    from transformers import BloomConfig, BloomForTokenClassification

    tokens = json.loads((MODELS / "docs-bart-mini/tokenizer.json").read_text())["model"]
    torch.manual_seed(0)
    labels = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    config = BloomConfig(vocab_size=len(tokens["vocab"]), hidden_size=256, n_layer=2, n_head=4, id2label=labels)
    BloomForTokenClassification(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(tokens["vocab"]))
    merges = [one if isinstance(one, str) else " ".join(one) for one in tokens["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return folder


def job_of(case: str, folder: Path, corpora: Path, scale: float) -> dict[str, Any]:
    """Write a case's input below `folder`, and return its job."""
    texts, task, model, more = {
        "summarization": lambda: (turns, "summarization", MODELS / "docs-bart-mini", SUMMARIZE),
        "zero-shot": lambda: (hypotheses, "zero-shot-classification", MODELS / "docs-bart-mini-mnli", CLASSIFY),
        "token-classification": lambda: (sentences, "token-classification", tagger(folder / "model"), {}),
    }[case]()
    rows = list(texts(corpora))
    rows = rows[: max(1, int(len(rows) * scale))]
    (folder / "in").mkdir()
    for number in range(SHARDS):
        own = rows[number * len(rows) // SHARDS : (number + 1) * len(rows) // SHARDS]
        pq.write_table(pa.table({"text": own}), folder / f"in/{number}.parquet", row_group_size=1000)
    return {
        "task": task,
        "model": str(model),
        "input": {"paths": [str(folder / "in")]},
        "output": {"path": str(folder / "out")},
        "engine": {"device": "cpu"},
        "limits": {"max_error_rate": 1.0},
        **more,
    }


SHARDS = 6
LABELS = ["sport", "food", "work", "music"]
SUMMARIZE = {"task_options": {"long_documents": "truncate"}}
CLASSIFY = {"task_options": {"candidate_labels": LABELS}}
CASES = ("summarization", "zero-shot", "token-classification")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=os.environ.get("BATCHLOOM_CORPORA"), help=CORPORA)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sample", type=int, default=2000, help="rows that plan reads")
    parser.add_argument("--scale", type=float, default=1.0, help="the share of a corpus' rows that the job has")
    record.add_options(parser)
    asked = parser.parse_args()
    if asked.corpora is None:
        print(f"No corpora: give --corpora FOLDER or BATCHLOOM_CORPORA, a folder with {CORPORA}. Nothing was measured.")
        return
    figures = []
    for case in asked.cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job = folder / "job.yaml"
            job.write_text(json.dumps(job_of(case, folder, asked.corpora, asked.scale)))
            planned, plan_seconds, plan_cpu = told("plan", job, "--probe", "--sample", str(asked.sample))
            rounds = [f"{one['num_rows']} in {one['seconds']:.2f} s" for one in planned[0]["rehearsal"]["rounds"]]
            print(f"{case}: planned in {plan_seconds:.1f} s ({plan_cpu:.1f} of processors)")
            print(f"  rounds of rows: {', '.join(rounds)}", flush=True)
            found, run_seconds, run_cpu = told("run", job)
            for one in compared(planned[0], found, run_seconds):
                print(f"  {one.line}")
                for system, value in (("planned", one.planned), ("found", one.found)):
                    figures.append(record.Figure(system=system, what=f"{case}: {one.what}", value=value, unit=one.unit))
            print(f"  processor seconds of the run: {run_cpu:.1f}", flush=True)
    title = "what plan --probe says of jobs, and what they find"
    workload = {"cases": asked.cases, "scale": asked.scale, "sample": asked.sample, "shards": SHARDS}
    record.write(asked.results, "forecast", title, workload, figures)


class Compared(NamedTuple):
    what: str
    planned: float
    found: float
    unit: str
    line: str


def told(command: str, job: Path, *options: str) -> tuple[list[dict[str, Any]], float, float]:
    """Return what a command says as JSON, and the wall and processor seconds that it takes with what it starts."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "batchloom", command, str(job), "--json", *options],
        check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return [json.loads(line) for line in done.stdout.splitlines()], time.perf_counter() - began, cpu


def compared(plan: dict[str, Any], run: list[dict[str, Any]], seconds: float) -> Iterator[Compared]:
    """Yield each figure: planned, found, by how much they differ."""
    found, forecast, rehearsal = run[-1], plan["forecast"], plan["rehearsal"]
    units = next(event for event in run if event["event"] == "planned")["num_units"]
    yield exact("rows", plan["num_rows"], found["totals"]["rows"])
    yield exact("units", plan["num_units"], units)
    totals, timing = found["totals"], found["timing"]
    yield near(
        "tokens in", forecast["input_tokens"]["total"], totals["input_tokens"], "tokens", forecast["input_tokens"]
    )
    if totals["output_tokens"]:
        out = rehearsal["output_tokens"]
        yield near("tokens out", out["total"], totals["output_tokens"], "tokens", out)
    errors = sum(kind["total"] for kind in (forecast["errors"] | rehearsal["errors"]).values())
    line = f"error rows: planned {errors:,.0f}, found {totals['errors']:,}"
    yield Compared("error rows", errors, totals["errors"], "rows", line)
    computing = timing["wall_seconds"] - timing["startup_seconds"]
    expected = rehearsal["seconds"]["1"]
    yield near("seconds of computing", expected - rehearsal["startup_seconds"], computing, "seconds")
    yield near("seconds, start to end", expected, seconds, "seconds")
    starting = rehearsal["startup_seconds"], timing["startup_seconds"]
    yield Compared("start-up", *starting, "s", "start-up: planned {:.1f} s, found {:.1f} s".format(*starting))


def exact(what: str, planned: int, found: int) -> Compared:
    line = f"{what}: planned {planned:,}, found {found:,}: {'equal' if planned == found else 'NOT EQUAL'}"
    return Compared(what, planned, found, what, line)


def near(what: str, planned: float, found: float, target: str, interval: dict[str, float] | None = None) -> Compared:
    off = planned / found - 1
    margin = f" (±{1.96 * interval['standard_error'] / planned:.1%} said)" if interval else ""
    verdict = "within" if abs(off) <= TARGETS[target] else "NOT within"
    line = f"{what}: planned {planned:,.1f}{margin}, found {found:,.1f}: {off:+.1%}, {verdict} {TARGETS[target]:.0%}"
    return Compared(what, planned, found, target, line)


if __name__ == "__main__":
    main()
