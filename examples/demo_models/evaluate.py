"""Figures of the demo's models on packages that they never read, beside baselines; and twenty samples, not picked.

    pip install rouge-score scikit-learn
    python examples/demo_models/evaluate.py build/demo_models

The answers are two jobs' own; they stay in build/demo_models/answers.
"""

import argparse
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rouge_score.rouge_scorer import RougeScorer
from semantics import Semantics
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from topics import TEMPLATE, TOPICS, UNSEEN, topic_of

from batchloom import pipelines
from batchloom.pipelines.config import InputConfig, OutputConfig

NUM_SUMMARIES, NUM_SAMPLES = 1000, 20
MAX_PER_TOPIC = 100  # networkx alone would be a quarter of all
MEASURES = ("rouge1", "rouge2", "rougeL")

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of the corpus and of the two trained models")
    options = parser.parse_args()
    held_out = pq.read_table(options.folder / "held_out.parquet").to_pylist()
    random.Random(0).shuffle(held_out)
    answers = options.folder / "answers"
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir()
    print_summaries(options.folder / "docs-bart-mini", held_out[:NUM_SUMMARIES], answers)
    train = pq.read_table(options.folder / "train.parquet").to_pylist()
    print_topics(options.folder / "docs-bart-mini-mnli", list(some_of_each(held_out)), train, answers)


def answered(model: Path, task: str, rows: list[Row], folder: Path, **task_options: object) -> list[Row]:
    """The rows with the columns that a job adds, in their order."""
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{task}.parquet")
    job = pipelines.JobConfig(
        task=task,
        model=str(model),
        input=InputConfig(
            paths=(str(folder / f"{task}.parquet"),), text_column="text", keep_columns=("reference", "module")
        ),
        output=OutputConfig(path=str(folder / task)),
        task_options=task_options,
    )
    pipelines.run(job)
    found: list[Row] = pq.read_table(folder / task).to_pylist()
    return found


def print_summaries(model: Path, rows: list[Row], folder: Path) -> None:
    found = answered(model, "summarization", rows, folder, long_documents="truncate")
    references = [row["reference"] for row in rows]
    others = random.Random(0).choices(references, k=3 * len(rows))
    print(f"Summaries of {len(rows):,} held-out docstrings against their own first lines, F1 in percent.\n")
    print("| | ROUGE-1 | ROUGE-2 | ROUGE-L |\n|---|---|---|---|")
    for name, guesses in (
        ("docs-bart-mini", [[row["summary_text"]] for row in found]),
        ("first sentence of the body", [[row["text"].split(". ")[0]] for row in rows]),
        ("best of three random first lines", [others[3 * i : 3 * i + 3] for i in range(len(rows))]),
    ):
        print(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in rouge(guesses, references))} |")
    print(f"\n{NUM_SAMPLES} of them at random.\n\n| first line | docs-bart-mini |\n|---|---|")
    for row in found[:NUM_SAMPLES]:
        print(f"| {cell(row['reference'])} | {cell(row['summary_text'])} |")


def rouge(guesses: Sequence[Sequence[str]], references: Sequence[str]) -> list[float]:
    """Mean F1 of each measure; of several guesses the best counts, measure by measure."""
    scorer = RougeScorer(MEASURES, use_stemmer=True)
    best = []
    for some, reference in zip(guesses, references, strict=True):
        scores = [scorer.score(reference, guess) for guess in some]
        best.append([max(score[measure].fmeasure for score in scores) for measure in MEASURES])
    return list(np.mean(best, axis=0))


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def some_of_each(rows: Sequence[Row]) -> Iterator[Row]:
    num_of: Counter[str] = Counter()
    for row in rows:
        topic = topic_of(row["module"])
        if topic in TOPICS and num_of[topic] < MAX_PER_TOPIC:
            num_of[topic] += 1
            yield row


def print_topics(model: Path, rows: list[Row], train: list[Row], folder: Path) -> None:
    options = {"candidate_labels": list(TOPICS), "hypothesis_template": TEMPLATE}
    found = answered(model, "zero-shot-classification", rows, folder, **options)
    truth = np.array([topic_of(row["module"]) for row in rows])
    unseen = np.isin(truth, UNSEEN)
    texts = [row["text"] for row in rows]
    print(
        f"\nTopics of {len(rows):,} held-out docstrings among {len(TOPICS)}, accuracy in percent, each topic alike.\n"
    )
    print(f"| | {len(TOPICS) - len(UNSEEN)} topics seen in training | {len(UNSEEN)} never seen |\n|---|---|---|")
    for name, guess in (
        ("docs-bart-mini-mnli", np.array([row["labels"][0] for row in found])),
        ("bag of words, trained on the seen topics", bag_of_words(texts, train)),
        ("the topic that the text names most often", named(texts)),
        ("latent semantic analysis, the training's teacher", by_semantics(texts, train)),
        ("chance", None),
    ):
        shares = (
            [1 / len(TOPICS)] * 2
            if guess is None
            else [accuracy(truth[part], guess[part]) for part in (~unseen, unseen)]
        )
        print(f"| {name} | {' | '.join(f'{100 * share:.0f}' for share in shares)} |")


def accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean over topics."""
    return float(np.mean([(guess[truth == topic] == topic).mean() for topic in np.unique(truth)]))


def bag_of_words(texts: Sequence[str], train: Sequence[Row]) -> np.ndarray:
    """Logistic regression on the words of the training texts whose topic was seen: the classic that needs training."""
    seen = [row for row in train if topic_of(row["module"]) in set(TOPICS) - set(UNSEEN)]
    counter = CountVectorizer(min_df=5, binary=True)
    counts = counter.fit_transform([row["text"] for row in seen])
    model = LogisticRegression(max_iter=300, class_weight="balanced")
    model.fit(counts, [topic_of(row["module"]) for row in seen])
    return np.asarray(model.predict(counter.transform(texts)))


def by_semantics(texts: Sequence[str], train: Sequence[Row]) -> np.ndarray:
    """The topic whose words are nearest."""
    semantics = Semantics([f"{row['module'].replace('.', ' ')} {row['reference']} {row['text']}" for row in train])
    return np.array(TOPICS)[np.argmax(semantics.texts(texts) @ semantics.phrases(TOPICS).T, axis=1)]


def named(texts: Sequence[str]) -> np.ndarray:
    """By how often a topic's words, without their endings, begin a word of the text; where none does, the first."""
    stems = [[word.rstrip("s")[:6] for word in topic.split()] for topic in TOPICS]
    found = []
    for text in texts:
        words = text.lower().split()
        hits = [sum(word.startswith(tuple(stem)) for word in words) for stem in stems]
        found.append(TOPICS[int(np.argmax(hits))])
    return np.array(found)


if __name__ == "__main__":
    main()
