"""What a model takes, and how long, from its configuration alone: parameters, bytes, seconds. It knows no tensor.

Bytes are exact, and tests hold them against models that were loaded. Seconds are those of a roofline: whoever reads all
that has to be read at full bandwidth, and computes all that has to be computed at full speed, needs as long.
"""

from dataclasses import dataclass

from batchloom.models.families.config import ModelConfig, StackSize
from batchloom.models.families.table import family_of

# Of the memory that weights leave free, what keys and values may take, by device. The rest is for activations, for
# logits, and on a CPU for whoever else runs there.
CACHE_SHARE = {"cuda": 0.8, "cpu": 0.5}
# Bytes that a GPU's blocks take for each byte of keys and values that may come: the rest of a block 1.2 for texts of
# 170 tokens, holes 1.14, and 1.1 as arrays grow by leaps. More at worst, but few answers become as long as they may.
BLOCK_PADDING = 1.5
# Of a device's memory: its driver's context, buffers of the ranks' messages, what the allocator cannot use.
RESERVED_BYTES = 4e9
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one rank runs on. The defaults are an NVIDIA H100 SXM with 80 GB among its like, by the maker's figures."""

    memory: float = 80e9
    """Bytes of a device."""
    bandwidth: float = 3.35e12
    """Bytes a second between a device and its memory."""
    half_flops: float = 989e12
    """Operations a second in float16 and bfloat16, dense."""
    float_flops: float = 67e12
    """Operations a second in float32."""
    link: float = 450e9
    """Bytes a second from a device to another, each way."""
    latency: float = 10e-6
    """Seconds that a sum over ranks takes if there is next to nothing to sum."""
    storage: float = 5e9
    """Bytes a second from storage to all ranks of a replica together."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """One rank of a model: that which holds most, where the vocabulary is uneven."""

    config: ModelConfig
    architecture: str
    """A name of models/families/table.py."""
    num_ranks: int = 1
    dtype: str = "float32"

    @property
    def num_parameters(self) -> int:
        """Parameters of the rank, norms, biases and positions whole."""
        return self._stacks() + self._vocabulary() + self._head()

    @property
    def weight_bytes(self) -> int:
        """Bytes that the rank holds, and reads where the files are in the same dtype."""
        return self.num_parameters * self._itemsize

    @property
    def cached_token_bytes(self) -> int:
        """Keys and values of one token in all decoder layers; a source token of an encoder-decoder takes as much."""
        return 2 * self.config.decoder.num_layers * (self._width // self.num_ranks) * self._itemsize

    def cached_tokens(self, machine: Machine) -> int:
        """Tokens whose keys and values fit beside the weights; none where the weights do not fit."""
        free = machine.memory - RESERVED_BYTES - self.weight_bytes
        return max(0, int(free * CACHE_SHARE["cuda"] / BLOCK_PADDING / self.cached_token_bytes))

    def step_seconds(self, machine: Machine, rows: int, tokens: int) -> float:
        """A decode step of `rows` sequences that look back at `tokens` each, sources included."""
        num_read = self._decoder() * self._itemsize + rows * tokens * self.cached_token_bytes
        attention = 4 * self.config.decoder.num_layers * (self._width // self.num_ranks) * tokens
        num_operations = rows * (2 * self._decoder() + attention)
        flops = machine.float_flops if self._itemsize == 4 else machine.half_flops
        return max(num_read / machine.bandwidth, num_operations / flops) + self._summing_seconds(machine, rows)

    def loading_seconds(self, machine: Machine) -> float:
        """Reading the weights once, all ranks at the same time."""
        return self.num_ranks * self.weight_bytes / machine.storage

    def _summing_seconds(self, machine: Machine, rows: int) -> float:
        """Sums by rings, after the embedding, attention and feed-forward; and two small messages to choose tokens."""
        if self.num_ranks == 1:
            return 0.0
        num_sums = 1 + self.config.decoder.num_layers * (3 if self._has_encoder else 2)
        sum_bytes = 2 * (self.num_ranks - 1) / self.num_ranks * rows * self._width * self._itemsize
        return (num_sums + 2) * machine.latency + num_sums * sum_bytes / machine.link

    # Parameters of the rank

    def _stacks(self) -> int:
        decoder = self.config.decoder.num_layers * self._decoder_layer() + self._outside_layers()
        if self._encoder is None:
            return decoder
        encoder = self._encoder.num_layers * self._layer(self._encoder.inner_width) + self._outside_layers()
        return encoder + decoder

    def _outside_layers(self) -> int:
        """Positions of a stack, and its norms on embeddings and at the end."""
        config, family = self.config, family_of(self.config)
        num_positions = 0 if config.max_positions is None else config.max_positions + family.position_offset
        return num_positions * self._width + (family.embedding_norm + family.final_norm) * self._norm

    def _vocabulary(self) -> int:
        """Embeddings and output head: one matrix, or one for each who reads it."""
        speaks = self.architecture.endswith(("ForCausalLM", "ForConditionalGeneration"))
        num_matrices = 1 if self.config.tie_word_embeddings else 1 + self._has_encoder + speaks
        return num_matrices * self._embedding

    def _head(self) -> int:
        """What stands on the last hidden states, the output head apart; every rank holds all of it."""
        config, width = self.config, self._width
        _, _, head = self.architecture.partition("For")
        if head == "ConditionalGeneration":
            return config.vocab_size  # final_logits_bias
        if head == "QuestionAnswering":
            return (width + 1) * 2
        if head == "TokenClassification":
            return (width + 1) * config.num_labels
        if head == "SequenceClassification":
            return width * config.num_labels + (width * (width + 1) + config.num_labels) * self._has_encoder
        return 0

    def _decoder(self) -> int:
        """What a decode step reads: the decoder's layers, less what made the source's keys and values, and the head."""
        source = 2 * self._by_outputs(self._width, self._width) * self._has_encoder
        return self.config.decoder.num_layers * (self._decoder_layer() - source) + self._embedding

    def _decoder_layer(self) -> int:
        return self._layer(self.config.decoder.inner_width) + (self._attention + self._norm) * self._has_encoder

    def _layer(self, inner: int) -> int:
        feed_forward = self._by_outputs(self._width, inner) + self._by_inputs(inner, self._width)
        return self._attention + feed_forward + 2 * self._norm

    @property
    def _attention(self) -> int:
        return 3 * self._by_outputs(self._width, self._width) + self._by_inputs(self._width, self._width)

    def _by_outputs(self, inputs: int, outputs: int) -> int:
        return (inputs + 1) * (outputs // self.num_ranks)

    def _by_inputs(self, inputs: int, outputs: int) -> int:
        return inputs // self.num_ranks * outputs + outputs

    @property
    def _norm(self) -> int:
        return 2 * self._width

    @property
    def _embedding(self) -> int:
        return -(-self.config.vocab_size // self.num_ranks) * self._width

    @property
    def _width(self) -> int:
        return self.config.width

    @property
    def _encoder(self) -> StackSize | None:
        return self.config.encoder_of(self.architecture)

    @property
    def _has_encoder(self) -> bool:
        return self._encoder is not None

    @property
    def _itemsize(self) -> int:
        return DTYPE_BYTES[self.dtype]
