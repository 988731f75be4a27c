"""Blenderbot: norms before each sublayer and once at the end of each stack, none on the embeddings. It knows no cache.

Source: Roller et al., arXiv 2004.13637. Names of modules are those of the hub's checkpoints.
"""

from typing import cast

from torch import Tensor, nn

from batchloom.models.families.config import BartConfig
from batchloom.models.families.encoder_decoder import (
    ConditionalGeneration,
    EncoderDecoderModel,
    clamp_half,
)
from batchloom.models.families.heads import DecoderAlone
from batchloom.models.families.projections import CrossAttention, SelfAttention
from batchloom.models.layers.attention import AttentionContext, PackedAttention
from batchloom.models.layers.embedding import VocabularyEmbedding
from batchloom.models.layers.feedforward import activation
from batchloom.models.layers.linear import ColumnLinear, RowLinear
from batchloom.models.layers.positions import LearnedPositions
from batchloom.models.ranks.group import TensorParallel


class BlenderbotEncoderLayer(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config.d_model, config.encoder_attention_heads, group)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = ColumnLinear(config.d_model, config.encoder_ffn_dim, group)
        self.fc2 = RowLinear(config.encoder_ffn_dim, config.d_model, group)
        self.activation = activation(config.activation_function)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        hidden_ND = hidden_ND + self.self_attn(layer, self.self_attn_layer_norm(hidden_ND), context)
        hidden_ND = hidden_ND + self.fc2(self.fc1(self.final_layer_norm(hidden_ND), self.activation))
        return clamp_half(hidden_ND)


class BlenderbotDecoderLayer(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel, crosses: bool) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config.d_model, config.decoder_attention_heads, group)
        if crosses:
            self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
            self.encoder_attn = CrossAttention(config.d_model, config.decoder_attention_heads, group)
        self.crosses = crosses
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = ColumnLinear(config.d_model, config.decoder_ffn_dim, group)
        self.fc2 = RowLinear(config.decoder_ffn_dim, config.d_model, group)
        self.activation = activation(config.activation_function)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        attended_ND = self.self_attn(layer, self.self_attn_layer_norm(hidden_ND), context)
        return self.rest(layer, hidden_ND + attended_ND, context)

    def last(self, layer: int, hidden_ND: Tensor, last_B: Tensor, context: PackedAttention) -> Tensor:
        """The rows `last_B` of what forward gives; only their queries and feed-forward are computed."""
        asking, normed_ND = context.last(), self.self_attn_layer_norm(hidden_ND)
        attended_BD = self.self_attn.ask(layer, normed_ND, last_B, asking)
        return self.rest(layer, hidden_ND[last_B] + attended_BD, asking)

    def rest(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        """The layer after self-attention and its residual sum."""
        if self.crosses:
            hidden_ND = hidden_ND + self.encoder_attn(layer, self.encoder_attn_layer_norm(hidden_ND), context)
        return hidden_ND + self.fc2(self.fc1(self.final_layer_norm(hidden_ND), self.activation))


class BlenderbotEncoder(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__()
        width = config.d_model
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, width, group, config.embedding_scale)
        self.embed_positions = LearnedPositions(config.max_position_embeddings, width)
        self.layers = nn.ModuleList(BlenderbotEncoderLayer(config, group) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        hidden_ND = self.embed_tokens(input_ids_N) + self.embed_positions(positions_N)
        for index, layer in enumerate(self.layers):
            hidden_ND = layer(index, hidden_ND, context)
        return self.layer_norm(hidden_ND)


class BlenderbotDecoder(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel, crosses: bool = True) -> None:
        super().__init__()
        width = config.d_model
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, width, group, config.embedding_scale)
        self.embed_positions = LearnedPositions(config.max_position_embeddings, width)
        self.layers = nn.ModuleList(
            BlenderbotDecoderLayer(config, group, crosses) for _ in range(config.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        hidden_ND = self.embed_tokens(input_ids_N) + self.embed_positions(positions_N)
        for index, layer in enumerate(self.layers):
            hidden_ND = layer(index, hidden_ND, context)
        return self.layer_norm(hidden_ND)

    def last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        hidden_ND = self.embed_tokens(input_ids_N) + self.embed_positions(positions_N)
        for index, layer in enumerate(self.layers[:-1]):
            hidden_ND = layer(index, hidden_ND, context)
        final = cast(BlenderbotDecoderLayer, self.layers[-1])
        last_BD = final.last(len(self.layers) - 1, hidden_ND, context.last_tokens(hidden_ND.device), context)
        return self.layer_norm(last_BD)


class BlenderbotModel(EncoderDecoderModel):
    shifts_input = False

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.encoder = BlenderbotEncoder(config, group)
        self.decoder = BlenderbotDecoder(config, group)


class BlenderbotForConditionalGeneration(ConditionalGeneration):
    shifts_input = False

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.model = BlenderbotModel(config, group)


class BlenderbotForCausalLM(DecoderAlone):
    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.decoder = BlenderbotDecoder(config, group, crosses=False)
