"""What the engine asks of a model, as protocols. It knows no family.

A model of models/families satisfies them by its methods; so does any object with these members, as the tests' scripted
models do. Shapes: see the legend in models/layers/attention.py.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from batchloom.models.errors import UnsupportedModelError
from batchloom.models.layers.attention import AttentionContext
from batchloom.models.ranks.group import TensorParallel


class ConfigWithVocabulary(Protocol):
    """The part of a model's configuration that the engine reads."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; token ids are below."""
        ...


class Model(Protocol):
    """What every loaded model has, with or without a language-model head."""

    @property
    def config(self) -> ConfigWithVocabulary: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def group(self) -> TensorParallel:
        """The ranks that hold the model."""
        ...

    @property
    def is_encoder_decoder(self) -> bool: ...

    @property
    def max_positions(self) -> int | None:
        """The longest sequence in tokens; None where positions are not limited."""
        ...

    @property
    def alibi_slopes(self) -> Tensor | None:
        """ALiBi slopes of this rank's heads, float32 [H]; None where positions are learned."""
        ...

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The checkpoint's generation options, under transformers' names."""
        ...


class GenerativeModel(Model, Protocol):
    """A model that generates: a decoder stack with a language-model head."""

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        ...

    @property
    def num_heads(self) -> int:
        """Attention heads of the decoder on this rank."""
        ...

    @property
    def head_dim(self) -> int: ...

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext, /) -> Tensor:
        """Return the decoder's hidden states [N, D] of packed tokens, final norm included."""
        ...

    def local_logits(self, hidden_ND: Tensor, /) -> Tensor:
        """Return this rank's columns of the logits, [N, V]."""
        ...


class GenerativeEncoderDecoder(GenerativeModel, Protocol):
    """A language model with an encoder, over whose output the decoder cross-attends."""

    def encode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext, /) -> Tensor:
        """Return the encoder's hidden states [N, D] of packed tokens."""
        ...

    def cross_keys_values(self, encoded_ND: Tensor, /) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values [N, H, K] of each decoder layer over the encoder's output."""
        ...


def generative(model: Model) -> GenerativeModel:
    """Return the model as one that generates.

    Raises: UnsupportedModelError where it has no language-model head.
    """
    if not _has_head(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head, so it cannot generate. Load the checkpoint with "
            "architecture = '...ForConditionalGeneration' or '...ForCausalLM', or use SinglePass for this model."
        )
    return model


def has_encoder(model: GenerativeModel) -> TypeGuard[GenerativeEncoderDecoder]:
    """Return whether prompts are read by an encoder."""
    return model.is_encoder_decoder


def _has_head(model: Model) -> TypeGuard[GenerativeModel]:
    return hasattr(model, "local_logits")
