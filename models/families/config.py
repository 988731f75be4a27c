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
    # Fields that count attention heads, each of which must divide the width.
    HEADS: ClassVar[tuple[str, ...]]
    # Names of the embedding's matrix in files, without prefix.
    EMBEDDINGS: ClassVar[tuple[str, ...]]

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
    def encoder(self) -> "StackSize | None":
        """The encoder's size, None where there is no encoder."""

    @property
    @abstractmethod
    def decoder(self) -> "StackSize":
        """The size of the decoder, which is the only stack of a decoder-only model."""

    @property
    def stacks(self) -> "tuple[StackSize, ...]":
        """The sizes of all stacks."""
        return (self.decoder,) if self.encoder is None else (self.encoder, self.decoder)

    def encoder_of(self, architecture: str) -> "StackSize | None":
        """Return the encoder that a class of the family has, None where it is a decoder alone."""
        return None if architecture.endswith("ForCausalLM") else self.encoder

    @property
    def head_dim(self) -> int:
        """The width of a decoder's attention head."""
        return self.width // self.decoder.num_heads


@dataclass(frozen=True, kw_only=True)
class StackSize:
    """How large an encoder or a decoder is."""

    num_layers: int
    num_heads: int  # of each attention; divides the width
    inner_width: int  # inside the feed-forwards
    layers: str  # the list of layers in files, without prefix
    inner: str  # a layer's tensor of shape [inner_width, width]
    positions: str | None = None  # the matrix of positions, where they are learned


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(ModelConfig):
    """Two stacks of layers and learned positions, as in BART."""

    SPELLINGS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "d_model": ("hidden_size",),
        "encoder_layers": ("num_hidden_layers",),
        "encoder_attention_heads": ("num_attention_heads",),
    }
    HEADS = ("encoder_attention_heads", "decoder_attention_heads")
    EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

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
    def encoder(self) -> StackSize:
        return _learned_stack("encoder", self.encoder_layers, self.encoder_attention_heads, self.encoder_ffn_dim)

    @property
    def decoder(self) -> StackSize:
        return _learned_stack("decoder", self.decoder_layers, self.decoder_attention_heads, self.decoder_ffn_dim)


def _learned_stack(name: str, num_layers: int, num_heads: int, inner_width: int) -> StackSize:
    return StackSize(
        num_layers=num_layers,
        num_heads=num_heads,
        inner_width=inner_width,
        layers=f"{name}.layers",
        inner="fc1.weight",
        positions=f"{name}.embed_positions.weight",
    )


@dataclass(frozen=True, kw_only=True)
class BloomConfig(ModelConfig):
    """BLOOM: one stack, ALiBi instead of positions."""

    SPELLINGS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hidden_size": ("n_embed", "n_embd"),
        "n_layer": ("num_hidden_layers", "num_layers"),
        "n_head": ("num_attention_heads",),
    }
    HEADS = ("n_head",)
    EMBEDDINGS = ("word_embeddings.weight",)

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
    def encoder(self) -> None:
        return None

    @property
    def decoder(self) -> StackSize:
        return StackSize(
            num_layers=self.n_layer,
            num_heads=self.n_head,
            inner_width=4 * self.hidden_size,
            layers="h",
            inner="mlp.dense_h_to_4h.weight",
        )
