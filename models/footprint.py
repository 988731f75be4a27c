"""Memory and time of a model, estimated from its configuration alone: parameters, bytes, seconds. It knows no tensor.

Bytes are exact: tests compare them with loaded models. Seconds are a roofline: the time at full memory bandwidth or at
full compute speed, whichever is longer.
"""

from dataclasses import dataclass

from batchloom.models.families.config import ModelConfig, StackSize
from batchloom.models.families.table import family_of
from batchloom.models.families.tensor_names import ACTIVATIONS
from batchloom.models.machines import Machine

# The share of the memory beside the weights that the KV cache may take, by device. The rest is for activations and
# logits, and on a CPU for other processes.
CACHE_SHARE = {"cuda": 0.8, "cpu": 0.5}
# Bytes of a GPU's KV cache blocks for each byte of keys and values at full length: 1.2 for unfilled last blocks (texts
# of 170 tokens), 1.14 for holes, 1.1 for arrays that grow in steps. The worst case is more, but few answers reach their
# maximum length.
BLOCK_PADDING = 1.5
# Device memory for the driver's context, communication buffers and what the allocator cannot use.
RESERVED_BYTES = 4e9
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 2}  # int8: of all but the weights of linear layers
INT8_OUTPUT_BYTES = 8  # of each output of a linear layer: its scale and its zero point


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """One rank of a model; if the vocabulary does not divide evenly, the rank that holds most."""

    config: ModelConfig
    architecture: str
    """A name of models/families/table.py."""
    num_ranks: int = 1
    dtype: str = "float32"

    @property
    def num_parameters(self) -> int:
        """Parameters of the rank. Norms, output biases and positions are not divided."""
        return self._stacks() + self._vocabulary() + self._head()

    @property
    def weight_bytes(self) -> int:
        """Bytes that the rank holds. It reads as many if the files have the same dtype."""
        return self.num_parameters * self._itemsize - self._saved(self._linear(), self._outputs())

    @property
    def cached_token_bytes(self) -> int:
        """Bytes of one token's keys and values in all decoder layers; the same for a token of the source."""
        return 2 * self.config.decoder.num_layers * (self._width // self.num_ranks) * self._itemsize

    def cached_tokens(self, machine: Machine) -> int:
        """Return how many tokens the KV cache holds beside the weights; 0 if the weights do not fit."""
        free = machine.memory - RESERVED_BYTES - self.weight_bytes
        return max(0, int(free * CACHE_SHARE["cuda"] / BLOCK_PADDING / self.cached_token_bytes))

    def step_seconds(self, machine: Machine, rows: int, tokens: int) -> float:
        """Return the time of a decode step of `rows` sequences that attend to `tokens` tokens each, source included."""
        num_read = self._decoder_bytes() + rows * tokens * self.cached_token_bytes
        attention = 4 * self.config.decoder.num_layers * (self._width // self.num_ranks) * tokens
        num_operations = rows * (2 * self._decoder() + attention)
        flops = machine.float_flops if self._itemsize == 4 else machine.half_flops
        return max(num_read / machine.bandwidth, num_operations / flops) + self._summing_seconds(machine, rows)

    def loading_seconds(self, machine: Machine) -> float:
        """Return the time to read the weights once, all ranks at the same time."""
        return self.num_ranks * self.weight_bytes / machine.storage

    def _summing_seconds(self, machine: Machine, rows: int) -> float:
        """Ring all-reduces after the embedding, attention and feed-forward, and two small messages to choose tokens."""
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
        """Parameters of a stack outside its layers: positions, and norms on the embeddings and at the end."""
        config, family = self.config, family_of(self.config)
        num_positions = 0 if config.max_positions is None else config.max_positions + family.position_offset
        return num_positions * self._width + (family.embedding_norm + family.final_norm) * self._norm

    def _vocabulary(self) -> int:
        """Embeddings and output projection: one tied matrix, or one for each user."""
        speaks = self.architecture.endswith(("ForCausalLM", "ForConditionalGeneration"))
        num_matrices = 1 if self.config.tie_word_embeddings else 1 + self._has_encoder + speaks
        return num_matrices * self._embedding

    def _head(self) -> int:
        """Parameters of the head on the last hidden states, except the output projection; not divided among ranks."""
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
        """Parameters that a decode step reads: decoder layers, less the source's k and v projections, and the head."""
        source = 2 * self._by_outputs(self._width, self._width) * self._has_encoder
        return self.config.decoder.num_layers * (self._decoder_layer() - source) + self._embedding

    def _decoder_bytes(self) -> int:
        """Bytes of the parameters that a decode step reads."""
        inner, num_layers = self.config.decoder.inner_width, self.config.decoder.num_layers
        crosses = self._has_encoder  # of whose four projections two are read
        weights = self._layer_weights(inner) + crosses * 2 * self._width * (self._width // self.num_ranks)
        outputs = self._layer_outputs(inner) + crosses * (self._width // self.num_ranks + self._width)
        return self._decoder() * self._itemsize - self._saved(num_layers * weights, num_layers * outputs)

    def _saved(self, weights: int, outputs: int) -> int:
        """Bytes by which int8 makes some weights of linear layers, with so many outputs, smaller."""
        return weights - INT8_OUTPUT_BYTES * outputs if self.dtype == "int8" else 0

    def _linear(self) -> int:
        """Weights of linear layers in the stacks, without biases."""
        decoder = self._layer_weights(self.config.decoder.inner_width)
        if self._encoder is None:
            return self.config.decoder.num_layers * decoder
        decoder += 4 * self._width * (self._width // self.num_ranks)
        encoder = self._encoder.num_layers * self._layer_weights(self._encoder.inner_width)
        return encoder + self.config.decoder.num_layers * decoder

    def _outputs(self) -> int:
        """Outputs of these layers."""
        decoder = self._layer_outputs(self.config.decoder.inner_width)
        if self._encoder is None:
            return self.config.decoder.num_layers * decoder
        decoder += 3 * (self._width // self.num_ranks) + self._width
        encoder = self._encoder.num_layers * self._layer_outputs(self._encoder.inner_width)
        return encoder + self.config.decoder.num_layers * decoder

    def _layer_weights(self, inner: int) -> int:
        return 4 * self._width * (self._width // self.num_ranks) + 2 * self._width * (inner // self.num_ranks)

    def _layer_outputs(self, inner: int) -> int:
        return 3 * (self._width // self.num_ranks) + inner // self.num_ranks + 2 * self._width

    def _decoder_layer(self) -> int:
        return self._layer(self.config.decoder.inner_width) + (self._attention + self._norm) * self._has_encoder

    def _layer(self, inner: int) -> int:
        feed_forward = self._by_outputs(self._width, inner) + self._by_inputs(inner, self._width)
        return self._attention + feed_forward + 2 * self._norm + self._activation

    @property
    def _activation(self) -> int:
        return len(ACTIVATIONS.get(getattr(self.config, "activation_function", ""), ()))

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
