"""The demo: summarize docstrings of installed packages and sort them by topic, with the commands that a user types.

    python examples/demo.py --rows 300

The packages are those that the demo's models never read (demo_models/held_out.txt). One job summarizes them, a second
one reads its answers and classifies the same texts, zero-shot. Everything lies in build/demo: corpus/, summaries.yaml,
summaries/, topics.yaml, topics/, report.html. A second call finds the work done and says so.
"""

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow.parquet as pq
from docstrings import corpus

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path("examples/demo_models")

SUMMARIES = """\
# weights {digest}
task: summarization
model: {models}/docs-bart-mini
input:
  paths: [{folder}/corpus/*.parquet]
  text_column: text
  keep_columns: [id, module, reference, text]
  rows_per_unit: {rows_per_unit}
output:
  path: {folder}/summaries
task_options:
  long_documents: truncate
"""

TOPICS = """\
# weights {digest}
task: zero-shot-classification
model: {models}/docs-bart-mini-mnli
input:
  paths: [{folder}/summaries/*.parquet]
  text_column: text
  keep_columns: [id, module, reference, summary_text]
output:
  path: {folder}/topics
task_options:
  candidate_labels: [linear algebra, dates, databases, plotting, statistics, text processing, file system, networking,
    web development, neural networks, concurrency, graphs, testing, command line, data validation, data frames]
  hypothesis_template: This text is about {{}}.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Summarize and classify documentation of packages installed here.")
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="docstrings to take (default: 300)")
    parser.add_argument("--folder", default="build/demo", help="where everything goes (default: build/demo)")
    arguments = parser.parse_args()
    if arguments.rows < 1:
        parser.error("--rows must be at least 1.")
    os.chdir(ROOT)  # so that the paths in the job file and in what is printed are those of a person in the checkout
    started = time.monotonic()
    prepare(Path(arguments.folder), arguments.rows)
    summaries, topics, report = (f"{arguments.folder}/{name}" for name in ("summaries", "topics", "report.html"))
    commands = [
        ["run", f"{summaries}.yaml"],
        ["show", summaries, "--columns", "reference,summary_text"],
        ["run", f"{topics}.yaml"],
        ["verify", topics],
        ["report", topics, "--html", report],
    ]
    for command in commands:
        code = batchloom(*command)
        if code:
            return code
    print("\nWhat it is about, by the number of docstrings, each topic with the one that is surest:\n")
    print("\n".join(table_of_topics(Path(topics))))
    print(f"\nAll in {time.monotonic() - started:.0f} s. Every row: {topics}/*.parquet. The report: {report}")
    return 0


def prepare(folder: Path, num_rows: int) -> None:
    """Write corpus and job files. Where these changed, remove the outputs of the old ones."""
    shards = corpus(num_rows)
    found = sum(pq.read_metadata(io.BytesIO(shard)).num_rows for shard in shards)
    print(f"Corpus: {found:,} docstrings of Python packages installed here, as {len(shards)} shards")
    print(f"Models: {MODELS}, which were trained on docstrings of other packages")
    files = {f"corpus/docstrings-{number:02d}.parquet": shard for number, shard in enumerate(shards)}
    values = {
        "digest": digest(MODELS),
        "models": MODELS,
        "folder": folder,
        "rows_per_unit": min(250, max(1, num_rows // 12)),
    }
    jobs = {"summaries.yaml": SUMMARIES.format(**values).encode(), "topics.yaml": TOPICS.format(**values).encode()}
    if write(folder, files | jobs):
        for output in ("summaries", "topics"):
            shutil.rmtree(folder / output, ignore_errors=True)


def digest(folder: Path) -> str:
    """Return a hash of the models, which job files hold so that other models under the same names change them."""
    contents = (path.read_bytes() for path in sorted(folder.glob("docs-bart-mini*/*")))
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:12]


def write(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write files that differ from those on disk, and return whether any did. Unchanged shards let a job resume."""
    stale = [path for path in folder.glob("corpus/*") if f"corpus/{path.name}" not in files]
    differing = {
        folder / name: content
        for name, content in files.items()
        if not (folder / name).exists() or (folder / name).read_bytes() != content
    }
    for path in stale:
        path.unlink()
    for path, content in differing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return bool(stale or differing)


def table_of_topics(output: Path) -> Iterator[str]:
    rows = [row for row in pq.read_table(output).to_pylist() if row["labels"]]
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_topic.setdefault(row["labels"][0], []).append(row)
    for topic, members in sorted(by_topic.items(), key=lambda found: -len(found[1])):
        surest = max(members, key=lambda row: row["scores"][0])
        example = shorten(f"{surest['module']}: {surest['summary_text']}", 90, placeholder="…")
        yield f"{topic:<16}{len(members):>6,}  {example}"


def batchloom(*arguments: str) -> int:
    """Print a command, run it, and return its exit code."""
    print(f"\n$ batchloom {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "batchloom", *arguments], check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the command that was running has printed what that means
        sys.exit(130)
