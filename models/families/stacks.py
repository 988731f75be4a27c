"""Encoder and decoder stacks of encoder-decoder families. They know no cache and no head.

A family names one of two layers by where its norms are: before each sublayer, or after each residual sum. Names of
modules are those of the hub's checkpoints.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from batchloom.models.families.config import EncoderDecoderConfig, StackSize
from batchloom.models.families.projections import CrossAttention, SelfAttention
from batchloom.models.families.table import family_of
from batchloom.models.layers.attention import AttentionContext, PackedAttention
from batchloom.models.layers.embedding import VocabularyEmbedding
from batchloom.models.layers.feedforward import activation
from batchloom.models.layers.linear import ColumnLinear, RowLinear
from batchloom.models.layers.norm import Norm
from batchloom.models.layers.positions import LearnedPositions
from batchloom.models.ranks.group import TensorParallel


class Layer(nn.Module):
    """The parts of a layer of either order; `crosses`: it also attends to an encoder's output."""

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel, size: StackSize, crosses: bool) -> None:
        super().__init__()
        width, num_heads, inner = config.width, size.num_heads, size.inner_width
        self.self_attn = SelfAttention(width, num_heads, group)
        self.self_attn_layer_norm = Norm(width)
        self.crosses = crosses
        if crosses:
            self.encoder_attn = CrossAttention(width, num_heads, group)
            self.encoder_attn_layer_norm = Norm(width)
        self.fc1 = ColumnLinear(width, inner, group)
        self.fc2 = RowLinear(inner, width, group)
        self.final_layer_norm = Norm(width)
        self.activation_fn = activation(config.activation_function)

    @abstractmethod
    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        """Return the layer's output: [N, D]."""

    @abstractmethod
    def last(self, layer: int, hidden_ND: Tensor, last_B: Tensor, context: PackedAttention) -> Tensor:
        """Return the rows `last_B` of forward's output; only their queries and feed-forward are computed."""

    def feed_forward(self, hidden_ND: Tensor) -> Tensor:
        return self.fc2(self.fc1(hidden_ND, self.activation_fn))


class NormFirstLayer(Layer):
    """Norms before each sublayer: hidden + sublayer(norm(hidden))."""

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        attended_ND = self.self_attn(layer, self.self_attn_layer_norm(hidden_ND), context)
        return self.rest(layer, hidden_ND, attended_ND, context)

    def last(self, layer: int, hidden_ND: Tensor, last_B: Tensor, context: PackedAttention) -> Tensor:
        asking, normed_ND = context.last(), self.self_attn_layer_norm(hidden_ND)
        attended_BD = self.self_attn.ask(layer, normed_ND, last_B, asking)
        return self.rest(layer, hidden_ND[last_B], attended_BD, asking)

    def rest(self, layer: int, hidden_ND: Tensor, update_ND: Tensor, context: AttentionContext) -> Tensor:
        """Apply the layer after self-attention, whose result is `update_ND`."""
        if self.crosses:
            hidden_ND, normed_ND = self.encoder_attn_layer_norm.sum_and_norm(hidden_ND, update_ND)
            update_ND = self.encoder_attn(layer, normed_ND, context)
        hidden_ND, normed_ND = self.final_layer_norm.sum_and_norm(hidden_ND, update_ND)
        return hidden_ND + self.feed_forward(normed_ND)


class NormAfterLayer(Layer):
    """Norms after each residual sum: norm(hidden + sublayer(hidden))."""

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        return self.rest(layer, hidden_ND, self.self_attn(layer, hidden_ND, context), context)

    def last(self, layer: int, hidden_ND: Tensor, last_B: Tensor, context: PackedAttention) -> Tensor:
        asking = context.last()
        attended_BD = self.self_attn.ask(layer, hidden_ND, last_B, asking)
        return self.rest(layer, hidden_ND[last_B], attended_BD, asking)

    def rest(self, layer: int, hidden_ND: Tensor, update_ND: Tensor, context: AttentionContext) -> Tensor:
        """Apply the layer after self-attention, whose result is `update_ND`."""
        hidden_ND = self.self_attn_layer_norm.of_sum(hidden_ND, update_ND)
        if self.crosses:
            attended_ND = self.encoder_attn(layer, hidden_ND, context)
            hidden_ND = self.encoder_attn_layer_norm.of_sum(hidden_ND, attended_ND)
        return self.final_layer_norm.of_sum(hidden_ND, self.feed_forward(hidden_ND))


class Stack(nn.Module):
    """Embeddings, positions and layers, with the norms around them that the family's record says."""

    def __init__(
        self, config: EncoderDecoderConfig, group: TensorParallel, layer: type[Layer], size: StackSize, crosses: bool
    ) -> None:
        super().__init__()
        family, width = family_of(config), config.width
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, width, group, config.embedding_scale)
        self.embed_positions = LearnedPositions(config.max_positions, width, family.position_offset)
        self.layernorm_embedding = Norm(width) if family.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(layer(config, group, size, crosses) for _ in range(size.num_layers))
        self.layer_norm = Norm(width) if family.final_norm else nn.Identity()

    def embed(self, input_ids_N: Tensor, positions_N: Tensor) -> Tensor:
        hidden_ND: Tensor = self.layernorm_embedding(self.embed_tokens(input_ids_N) + self.embed_positions(positions_N))
        return hidden_ND

    def states(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Iterator[Tensor]:
        """Yield [N, D] before the first layer and after each, the last one normed where the family norms it.

        A layer is computed when its states are asked for.
        """
        hidden_ND = self.embed(input_ids_N, positions_N)
        for index, layer in enumerate(self.layers):
            yield hidden_ND
            hidden_ND = self.bounded(layer(index, hidden_ND, context))
        yield self.layer_norm(hidden_ND)

    def forward(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        return deque(self.states(input_ids_N, positions_N, context), maxlen=1).pop()

    def bounded(self, hidden_ND: Tensor) -> Tensor:
        """Return a layer's output as the next layer reads it."""
        return hidden_ND


class EncoderStack(Stack):
    """Input ids to hidden states [N, D], kept finite in float16."""

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel, layer: type[Layer]) -> None:
        super().__init__(config, group, layer, config.encoder, crosses=False)

    def bounded(self, hidden_ND: Tensor) -> Tensor:
        return clamp_half(hidden_ND)


class DecoderStack(Stack):
    """Decoder ids to hidden states; `crosses`: its layers also attend to an encoder's output."""

    def __init__(self, config: EncoderDecoderConfig, group: TensorParallel, layer: type[Layer], crosses: bool) -> None:
        super().__init__(config, group, layer, config.decoder, crosses)

    def last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        """Return the hidden states of each sequence's last token, the last layer computed for these alone: [B, D]."""
        hidden_ND = self.embed(input_ids_N, positions_N)
        for index, layer in enumerate(self.layers[:-1]):
            hidden_ND = layer(index, hidden_ND, context)
        final = cast(Layer, self.layers[-1])
        last_BD = final.last(len(self.layers) - 1, hidden_ND, context.last_tokens(hidden_ND.device), context)
        normed_BD: Tensor = self.layer_norm(last_BD)
        return normed_BD

    def cross_keys_values(self, encoded_ND: Tensor, num_layers: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values [N, H, K] over an encoder's output; `num_layers`: of the first ones."""
        return [cast(Layer, layer).encoder_attn.keys_values(encoded_ND) for layer in self.layers[:num_layers]]


def clamp_half(hidden_ND: Tensor) -> Tensor:
    """Keep float16 hidden states finite, as the encoders were trained to expect; other dtypes pass.

    The reference clamps BART only where some value of the whole batch is infinite, which lets a row's answer depend on
    its neighbours, and costs a synchronization. Clamping always differs from it above 64512 alone.
    """
    if hidden_ND.dtype != torch.float16:
        return hidden_ND
    limit = torch.finfo(torch.float16).max - 1000
    return hidden_ND.clamp(-limit, limit)
