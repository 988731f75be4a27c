"""The tasks by name. Each has a file of its own, which is imported where it is asked for; neither ray nor torch is."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import Task, TaskSpec

FILES = {
    "summarization": "summarization.Summarization",
    "text-generation": "text_generation.TextGeneration",
    "text2text-generation": "text2text_generation.Text2TextGeneration",
    "conversational": "conversational.Conversational",
    "zero-shot-classification": "zero_shot_classification.ZeroShotClassification",
    "text-classification": "text_classification.TextClassification",
    "token-classification": "token_classification.TokenClassification",
    "question-answering": "question_answering.QuestionAnswering",
    "fill-mask": "fill_mask.FillMask",
    "feature-extraction": "feature_extraction.FeatureExtraction",
    "perplexity": "perplexity.Perplexity",
    "scoring": "scoring.Scoring",
}
"""File and class of each."""


class Tasks(Mapping[str, type[Task]]):
    """The classes by name. A command needs one of them, and all take a third of the time until `plan` answers."""

    def __getitem__(self, name: str) -> type[Task]:
        module, _, kind = FILES[name].partition(".")
        found: type[Task] = getattr(import_module(f"{__name__}.{module}"), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in FILES

    def __iter__(self) -> Iterator[str]:
        return iter(FILES)

    def __len__(self) -> int:
        return len(FILES)


TASKS: Mapping[str, type[Task]] = Tasks()

__all__ = ["TASKS", "Task", "TaskSpec", "create_task"]


def create_task(spec: TaskSpec) -> Task:
    """Return the task that a job asks for, with its options checked.

    Raises: ConfigError for an unknown task or option, naming the known ones, and for a checkpoint that it cannot use.
    """
    if spec.task not in TASKS:
        raise ConfigError(f"task: {spec.task!r} is not a task. Use one of: {', '.join(TASKS)}.")
    task = TASKS[spec.task].create(spec)
    if spec.input.text_pair_column not in (None, *task.input_columns()):
        raise ConfigError(
            f"input.text_pair_column: is {spec.input.text_pair_column!r}, and {spec.task} reads no pairs of texts. "
            "Leave it out, or use text-classification."
        )
    return task
