"""The demo: docstrings of the installed packages in, summaries out, through the commands that a person types.

    python examples/demo.py --rows 300

Everything it makes lies in build/demo: corpus/, model/, job.yaml, summaries/, report.html. A second call finds the work
done and says so.
"""

import argparse
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
from demo_model import random_model, trained_model
from docstrings import corpus

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("build/demo")  # below ROOT, where everything runs: the paths that are printed can be typed

JOB = """\
task: summarization
model: {model}
input:
  paths: [{demo}/corpus/*.parquet]
  text_column: text
  keep_columns: [id, reference, module]
  rows_per_unit: {rows_per_unit}
output:
  path: {demo}/summaries
task_options:
  long_documents: truncate
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Summarize the docstrings of the Python packages installed here.")
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="docstrings to summarize (default: 300)")
    num_rows = parser.parse_args().rows
    if num_rows < 1:
        parser.error("--rows must be at least 1.")
    prepare(num_rows)
    started = time.monotonic()
    output, report = f"{DEMO}/summaries", f"{DEMO}/report.html"
    commands = [
        ["run", f"{DEMO}/job.yaml"],
        ["verify", output],
        ["show", output, "--columns", "reference,summary_text"],
        ["report", output, "--html", report],
    ]
    for command in commands:
        code = batchloom(*command)
        if code:
            return code
    print(f"\nDone in {time.monotonic() - started:.1f} s.\n  results  {output}/*.parquet\n  report   {report}")
    return 0


def prepare(num_rows: int) -> None:
    """Write corpus, model and job file; an output of another corpus or model makes room."""
    shards = corpus(num_rows)
    files = {f"corpus/docstrings-{number:02d}.parquet": shard for number, shard in enumerate(shards)}
    written = sum(pq.read_metadata(io.BytesIO(shard)).num_rows for shard in shards)
    print(f"Corpus: {written:,} docstrings of the packages installed here, {len(shards)} shards in {DEMO}/corpus")
    trained = trained_model()
    if trained is None:
        print("Model: a small BART with random weights, made here. Its summaries mean nothing.")
        files |= {f"model/{name}": content for name, content in random_model(texts(shards)).items()}
    else:
        print(f"Model: {trained.relative_to(ROOT)}, a small BART trained on docstrings")
    model = f"{DEMO}/model" if trained is None else trained.relative_to(ROOT).as_posix()
    job = JOB.format(model=model, demo=DEMO, rows_per_unit=min(250, max(1, num_rows // 12)))
    files["job.yaml"] = job.encode()
    if write(files):
        shutil.rmtree(ROOT / DEMO / "summaries", ignore_errors=True)


def texts(shards: Iterable[bytes]) -> Iterable[str]:
    for shard in shards:
        yield from pq.read_table(io.BytesIO(shard), columns=["text"])["text"].to_pylist()


def write(files: Mapping[str, bytes]) -> bool:
    """Write what differs from what is there; True if anything did. Equal files stay as they are, so a job resumes."""
    folder = ROOT / DEMO
    stale = [path for path in folder.glob("corpus/*") if path.relative_to(folder).as_posix() not in files]
    for path in stale:
        path.unlink()
    changed = {
        folder / name: content
        for name, content in files.items()
        if not (folder / name).exists() or (folder / name).read_bytes() != content
    }
    for path, content in changed.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return bool(changed or stale)


def batchloom(*arguments: str) -> int:
    """Say the command, run it, and give back its exit code."""
    print(f"\n$ batchloom {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
