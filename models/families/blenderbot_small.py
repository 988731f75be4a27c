"""BlenderbotSmall: norms after the residual sums; the decoder norms its embeddings before it adds positions.

The encoder adds positions first. It knows no cache. Source: Roller et al., arXiv 2004.13637, the 90M model.
Names of modules are those of the hub's checkpoints.
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


class BlenderbotSmallEncoderLayer(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.d_model, config.encoder_attention_heads, group)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = ColumnLinear(config.d_model, config.encoder_ffn_dim, group)
        self.fc2 = RowLinear(config.encoder_ffn_dim, config.d_model, group)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.activation = activation(config.activation_function)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        hidden_ND = self.self_attn_layer_norm(hidden_ND + self.self_attn(layer, hidden_ND, context))
        hidden_ND = self.final_layer_norm(hidden_ND + self.fc2(self.fc1(hidden_ND, self.activation)))
        return clamp_half(hidden_ND)


class BlenderbotSmallDecoderLayer(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel, crosses: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.d_model, config.decoder_attention_heads, group)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        if crosses:
            self.encoder_attn = CrossAttention(config.d_model, config.decoder_attention_heads, group)
            self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.crosses = crosses
        self.fc1 = ColumnLinear(config.d_model, config.decoder_ffn_dim, group)
        self.fc2 = RowLinear(config.decoder_ffn_dim, config.d_model, group)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.activation = activation(config.activation_function)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        return self.rest(layer, hidden_ND + self.self_attn(layer, hidden_ND, context), context)

    def last(self, layer: int, hidden_ND: Tensor, last_B: Tensor, context: PackedAttention) -> Tensor:
        """The rows `last_B` of what forward gives; only their queries and feed-forward are computed."""
        asking = context.last()
        attended_BD = self.self_attn.ask(layer, hidden_ND, last_B, asking)
        return self.rest(layer, hidden_ND[last_B] + attended_BD, asking)

    def rest(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        """The layer after self-attention and its residual sum."""
        hidden_ND = self.self_attn_layer_norm(hidden_ND)
        if self.crosses:
            hidden_ND = self.encoder_attn_layer_norm(hidden_ND + self.encoder_attn(layer, hidden_ND, context))
        return self.final_layer_norm(hidden_ND + self.fc2(self.fc1(hidden_ND, self.activation)))


class BlenderbotSmallEncoder(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__()
        width = config.d_model
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, width, group, config.embedding_scale)
        self.embed_positions = LearnedPositions(config.max_position_embeddings, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(BlenderbotSmallEncoderLayer(config, group) for _ in range(config.encoder_layers))

    def forward(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        hidden_ND = self.layernorm_embedding(self.embed_tokens(input_ids_N) + self.embed_positions(positions_N))
        for index, layer in enumerate(self.layers):
            hidden_ND = layer(index, hidden_ND, context)
        return hidden_ND


class BlenderbotSmallDecoder(nn.Module):
    def __init__(self, config: BartConfig, group: TensorParallel, crosses: bool = True) -> None:
        super().__init__()
        width = config.d_model
        # No scale, whatever scale_embedding says: transformers 5.23, our reference, dropped it here (4.x and ParlAI
        # have it). A norm follows at once, so that only its epsilon notices: 4e-4 in the logits of the parity test.
        self.embed_tokens = VocabularyEmbedding(config.vocab_size, width, group)
        self.embed_positions = LearnedPositions(config.max_position_embeddings, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            BlenderbotSmallDecoderLayer(config, group, crosses) for _ in range(config.decoder_layers)
        )

    def forward(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        hidden_ND = self.embed(input_ids_N, positions_N)
        for index, layer in enumerate(self.layers):
            hidden_ND = layer(index, hidden_ND, context)
        return hidden_ND

    def last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        hidden_ND = self.embed(input_ids_N, positions_N)
        for index, layer in enumerate(self.layers[:-1]):
            hidden_ND = layer(index, hidden_ND, context)
        final = cast(BlenderbotSmallDecoderLayer, self.layers[-1])
        return final.last(len(self.layers) - 1, hidden_ND, context.last_tokens(hidden_ND.device), context)

    def embed(self, input_ids_N: Tensor, positions_N: Tensor) -> Tensor:
        return self.layernorm_embedding(self.embed_tokens(input_ids_N)) + self.embed_positions(positions_N)


class BlenderbotSmallModel(EncoderDecoderModel):
    shifts_input = False

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.encoder = BlenderbotSmallEncoder(config, group)
        self.decoder = BlenderbotSmallDecoder(config, group)


class BlenderbotSmallForConditionalGeneration(ConditionalGeneration):
    shifts_input = False

    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.model = BlenderbotSmallModel(config, group)


class BlenderbotSmallForCausalLM(DecoderAlone):
    def __init__(self, config: BartConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.decoder = BlenderbotSmallDecoder(config, group, crosses=False)
