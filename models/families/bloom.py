"""BLOOM: one stack, norms before each sublayer, ALiBi instead of positions. It knows no cache.

Source: BigScience, arXiv 2211.05100. Names of modules are those of the hub's checkpoints.
"""

from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from batchloom.models.families.config import BloomConfig
from batchloom.models.families.decoder_only import DecoderOnlyModel
from batchloom.models.families.heads import AnswerSpans, LanguageModel, SequenceClasses, TokenHead
from batchloom.models.layers.attention import AttentionContext, PackedAttention
from batchloom.models.layers.embedding import VocabularyEmbedding
from batchloom.models.layers.feedforward import gelu_tanh
from batchloom.models.layers.linear import ColumnLinear, RowLinear
from batchloom.models.layers.norm import Norm
from batchloom.models.layers.packing import lengths_to
from batchloom.models.layers.positions import alibi_slopes, positions_of
from batchloom.models.ranks.group import TensorParallel
from batchloom.models.transfers import queued

BLOOM_TIED = ("word_embeddings.weight", "lm_head.weight")


class BloomAttention(nn.Module):
    """Fused projections, head-major: rows are [heads, 3, head_dim], so a slice of rows is whole heads of q, k and v."""

    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__()
        self.num_heads, self.head_dim = group.share(config.n_head, "attention heads"), config.head_dim
        self.query_key_value = ColumnLinear(config.hidden_size, 3 * config.hidden_size, group)
        self.dense = RowLinear(config.hidden_size, config.hidden_size, group)

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        q_NHK, k_NHK, v_NHK = self.project(hidden_ND)
        return self.dense(context.attend(layer, q_NHK, k_NHK, v_NHK).flatten(1))

    def ask(self, layer: int, hidden_ND: Tensor, rows_M: Tensor, context: AttentionContext) -> Tensor:
        """Attend with the queries of some rows to the keys and values of all: [M, D]."""
        q_NHK, k_NHK, v_NHK = self.project(hidden_ND)
        return self.dense(context.attend(layer, q_NHK[rows_M], k_NHK, v_NHK).flatten(1))

    def project(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_NHK, k_NHK, v_NHK = self.query_key_value(hidden_ND).view(-1, self.num_heads, 3, self.head_dim).unbind(2)
        return q_NHK, k_NHK, v_NHK


class BloomMLP(nn.Module):
    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__()
        self.dense_h_to_4h = ColumnLinear(config.hidden_size, 4 * config.hidden_size, group)
        self.dense_4h_to_h = RowLinear(4 * config.hidden_size, config.hidden_size, group)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(hidden_ND, gelu_tanh))


class BloomBlock(nn.Module):
    """The residual branches off before each norm, or after it with apply_residual_connection_post_layernorm."""

    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.self_attention = BloomAttention(config, group)
        self.post_attention_layernorm = Norm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = BloomMLP(config, group)
        self.residual_after_norm = config.apply_residual_connection_post_layernorm

    def forward(self, layer: int, hidden_ND: Tensor, context: AttentionContext) -> Tensor:
        normed_ND = self.input_layernorm(hidden_ND)
        residual_ND = normed_ND if self.residual_after_norm else hidden_ND
        return self.rest(residual_ND, self.self_attention(layer, normed_ND, context))

    def last(self, layer: int, hidden_ND: Tensor, last_B: Tensor, context: PackedAttention) -> Tensor:
        """Return the rows `last_B` of forward's output; only their queries and feed-forward are computed."""
        normed_ND = self.input_layernorm(hidden_ND)
        residual_ND = normed_ND if self.residual_after_norm else hidden_ND
        attended_BD = self.self_attention.ask(layer, normed_ND, last_B, context.last())
        return self.rest(residual_ND[last_B], attended_BD)

    def rest(self, residual_ND: Tensor, update_ND: Tensor) -> Tensor:
        """Apply the layer after self-attention, whose result is `update_ND`."""
        hidden_ND, normed_ND = self.post_attention_layernorm.sum_and_norm(residual_ND, update_ND)
        residual_ND = normed_ND if self.residual_after_norm else hidden_ND
        return residual_ND + self.mlp(normed_ND)


class BloomModel(DecoderOnlyModel):
    """The bare model. Forward: hidden states [B, T, D]."""

    TIED = BLOOM_TIED
    config: BloomConfig

    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.word_embeddings = VocabularyEmbedding(config.vocab_size, config.hidden_size, group)
        self.word_embeddings_layernorm = Norm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.h = nn.ModuleList(BloomBlock(config, group) for _ in range(config.n_layer))
        self.ln_f = Norm(config.hidden_size, eps=config.layer_norm_epsilon)

    def decoder_states(
        self,
        input_ids_N: Tensor,
        positions_N: Tensor,  # noqa: ARG002
        context: AttentionContext,
    ) -> Iterator[Tensor]:
        hidden_ND = self.word_embeddings_layernorm(self.word_embeddings(input_ids_N))
        for index, block in enumerate(self.h):
            yield hidden_ND
            hidden_ND = block(index, hidden_ND, context)
        yield self.ln_f(hidden_ND)

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        return deque(self.decoder_states(input_ids_N, positions_N, context), maxlen=1).pop()

    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:  # noqa: ARG002
        hidden_ND = self.word_embeddings_layernorm(self.word_embeddings(input_ids_N))
        for index, block in enumerate(self.h[:-1]):
            hidden_ND = block(index, hidden_ND, context)
        final = cast(BloomBlock, self.h[-1])
        return self.ln_f(final.last(len(self.h) - 1, hidden_ND, context.last_tokens(hidden_ND.device), context))

    @cached_property
    def _slopes_H(self) -> Tensor:
        return queued(alibi_slopes(self.config.n_head).chunk(self.group.size)[self.group.rank], self.device)

    @property
    def alibi_slopes(self) -> Tensor:
        return self._slopes_H


class BloomWithHead(DecoderOnlyModel):
    """A BloomModel under its name in checkpoints, and a head on its hidden states."""

    TIED = BLOOM_TIED
    config: BloomConfig

    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.transformer = BloomModel(config, group)

    def decoder_states(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Iterator[Tensor]:
        return self.transformer.decoder_states(input_ids_N, positions_N, context)

    def decode(self, input_ids_N: Tensor, positions_N: Tensor, context: AttentionContext) -> Tensor:
        return self.transformer.decode(input_ids_N, positions_N, context)

    def decode_last(self, input_ids_N: Tensor, positions_N: Tensor, context: PackedAttention) -> Tensor:
        return self.transformer.decode_last(input_ids_N, positions_N, context)

    @property
    def alibi_slopes(self) -> Tensor:
        return self.transformer.alibi_slopes


class BloomForCausalLM(LanguageModel, BloomWithHead):
    """Forward: logits [B, T, V]."""


class BloomForSequenceClassification(SequenceClasses, BloomWithHead):
    """Classes of whole sequences, read at the last token that is not padding. Forward: logits [B, L]."""

    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def class_logits(self, input_ids_N: Tensor, lengths: list[int]) -> Tensor:
        """Return logits [B, L] of packed sequences; the last layer computes one position of each."""
        ends = self._lengths_without_padding(input_ids_N, lengths)
        if ends != lengths:
            input_ids_N = input_ids_N[lengths_to(lengths, ends, input_ids_N.device)]
        context = PackedAttention(ends, causal=True, alibi_slopes=self.alibi_slopes)
        hidden_BD = self.decode_last(input_ids_N, positions_of(ends, input_ids_N.device), context)
        logits_BL: Tensor = self.score(hidden_BD)
        return logits_BL

    def _lengths_without_padding(self, input_ids_N: Tensor, lengths: list[int]) -> list[int]:
        """Return lengths up to each sequence's last token that is not the padding id, which the reference reads.

        If padding and end token share an id, as in many finetuned checkpoints, trailing end tokens are dropped too.
        A sequence of padding ids only keeps its first token.
        """
        pad = self.config.pad_token_id
        if pad is None:
            return lengths
        ids, ends, first = input_ids_N.tolist(), [], 0
        for length in lengths:
            end = length
            while end > 1 and ids[first + end - 1] == pad:
                end -= 1
            ends.append(end)
            first += length
        return ends


class BloomForTokenClassification(TokenHead, BloomWithHead):
    """Classes of tokens. Forward: logits [B, T, L]."""

    def __init__(self, config: BloomConfig, group: TensorParallel) -> None:
        super().__init__(config, group)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def token_logits(self, hidden_ND: Tensor) -> Tensor:
        logits_NL: Tensor = self.classifier(hidden_ND)
        return logits_NL


class BloomForQuestionAnswering(AnswerSpans, BloomWithHead):
    """Where an answer starts and ends."""
