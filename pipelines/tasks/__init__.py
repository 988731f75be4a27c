"""The tasks by name. Each has a file of its own; neither ray nor torch is imported here."""

from collections.abc import Mapping

from batchloom.pipelines.errors import ConfigError
from batchloom.pipelines.tasks.base import Task, TaskSpec
from batchloom.pipelines.tasks.conversational import Conversational
from batchloom.pipelines.tasks.feature_extraction import FeatureExtraction
from batchloom.pipelines.tasks.fill_mask import FillMask
from batchloom.pipelines.tasks.perplexity import Perplexity
from batchloom.pipelines.tasks.question_answering import QuestionAnswering
from batchloom.pipelines.tasks.scoring import Scoring
from batchloom.pipelines.tasks.summarization import Summarization
from batchloom.pipelines.tasks.text2text_generation import Text2TextGeneration
from batchloom.pipelines.tasks.text_classification import TextClassification
from batchloom.pipelines.tasks.text_generation import TextGeneration
from batchloom.pipelines.tasks.token_classification import TokenClassification
from batchloom.pipelines.tasks.zero_shot_classification import ZeroShotClassification

TASKS: Mapping[str, type[Task]] = {
    "summarization": Summarization,
    "text-generation": TextGeneration,
    "text2text-generation": Text2TextGeneration,
    "conversational": Conversational,
    "zero-shot-classification": ZeroShotClassification,
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "fill-mask": FillMask,
    "feature-extraction": FeatureExtraction,
    "perplexity": Perplexity,
    "scoring": Scoring,
}

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
