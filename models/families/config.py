"""A configuration: config.json's values, frozen, and what follows from them. It knows no torch and no family."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """What every family has. Fields bear config.json's names where they mean the same."""

    # Other names that files use for a field; the field's own name wins.
    SPELLINGS: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    model_type: str  # a key of table.py FAMILIES
    architectures: tuple[str, ...] = ()  # class names, the first is loaded unless another is asked for
    vocab_size: int  # rows of the embedding; a tokenizer can have more or fewer
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None  # the first, where the file lists several
    eos_token_ids: tuple[int, ...] = ()  # all of them
    tie_word_embeddings: bool = True  # the output head is the embedding
    id2label: Mapping[int, str]  # classes by column of the logits
    problem_type: str | None = None  # "single_label_classification", "multi_label_classification", "regression"

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        return {label: column for column, label in self.id2label.items()}

    @property
    @abstractmethod
    def width(self) -> int:
        """The width of hidden states."""

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """The longest sequence in tokens, or None where positions are not limited."""

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, int]:
        """Attention heads by config.json's key, the decoder's last. Each count divides the width."""

    @property
    @abstractmethod
    def num_encoder_layers(self) -> int:
        """Layers of the encoder, 0 where there is none."""

    @property
    @abstractmethod
    def num_decoder_layers(self) -> int:
        """Layers of the decoder, which is the only stack of a decoder-only model."""

    @property
    @abstractmethod
    def encoder_inner_width(self) -> int:
        """The width inside the encoder's feed-forwards, 0 where there is no encoder."""

    @property
    @abstractmethod
    def decoder_inner_width(self) -> int:
        """The width inside the decoder's feed-forwards."""

    @abstractmethod
    def has_encoder(self, architecture: str) -> bool:
        """Whether a class of the family has an encoder beside its decoder."""

    @property
    def num_heads(self) -> int:
        """Attention heads of a decoder layer."""
        return list(self.heads.values())[-1]

    @property
    def head_dim(self) -> int:
        """The width of a decoder's attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(ModelConfig):
    """Two stacks of layers and learned positions, as in BART."""

    SPELLINGS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "d_model": ("hidden_size",),
        "encoder_layers": ("num_hidden_layers",),
        "encoder_attention_heads": ("num_attention_heads",),
    }

    d_model: int  # width of hidden states
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int  # width inside the feed-forward
    decoder_ffn_dim: int
    max_position_embeddings: int  # longest sequence, in tokens
    activation_function: str = "gelu"  # a name of layers/feedforward.py
    scale_embedding: bool = False  # multiply embeddings by sqrt(d_model)
    decoder_start_token_id: int | None  # the first token that the decoder reads

    @property
    def embedding_scale(self) -> float:
        return self.d_model**0.5 if self.scale_embedding else 1.0

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings

    @property
    def heads(self) -> Mapping[str, int]:
        return {
            "encoder_attention_heads": self.encoder_attention_heads,
            "decoder_attention_heads": self.decoder_attention_heads,
        }

    @property
    def num_encoder_layers(self) -> int:
        return self.encoder_layers

    @property
    def num_decoder_layers(self) -> int:
        return self.decoder_layers

    @property
    def encoder_inner_width(self) -> int:
        return self.encoder_ffn_dim

    @property
    def decoder_inner_width(self) -> int:
        return self.decoder_ffn_dim

    def has_encoder(self, architecture: str) -> bool:
        return not architecture.endswith("ForCausalLM")


@dataclass(frozen=True, kw_only=True)
class BloomConfig(ModelConfig):
    """BLOOM: one stack, ALiBi instead of positions."""

    SPELLINGS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hidden_size": ("n_embed", "n_embd"),
        "n_layer": ("num_hidden_layers", "num_layers"),
        "n_head": ("num_attention_heads",),
    }

    hidden_size: int  # width of hidden states
    n_layer: int
    n_head: int
    layer_norm_epsilon: float = 1e-5
    apply_residual_connection_post_layernorm: bool = False  # residuals branch off after the norm, not before

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def max_positions(self) -> None:
        return None

    @property
    def heads(self) -> Mapping[str, int]:
        return {"n_head": self.n_head}

    @property
    def num_encoder_layers(self) -> int:
        return 0

    @property
    def num_decoder_layers(self) -> int:
        return self.n_layer

    @property
    def encoder_inner_width(self) -> int:
        return 0

    @property
    def decoder_inner_width(self) -> int:
        return 4 * self.hidden_size

    def has_encoder(self, architecture: str) -> bool:  # noqa: ARG002
        return False
