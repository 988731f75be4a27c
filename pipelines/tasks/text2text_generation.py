"""Text-to-text generation: a text in, `generated_text` out, by an encoder-decoder checkpoint."""

from dataclasses import dataclass

from batchloom.pipelines.tasks.base import TaskSpec, with_head
from batchloom.pipelines.tasks.text_generation import TextGeneration


@dataclass(frozen=True, kw_only=True)
class Text2TextGeneration(TextGeneration):
    """The text2text-generation task: text generation with the prompt read by the encoder."""

    @classmethod
    def create(cls, spec: TaskSpec) -> "Text2TextGeneration":
        return cls.on(spec, with_head(spec, "ForConditionalGeneration"))
