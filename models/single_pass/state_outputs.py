"""What a pass can give of the hidden states of one stack, and the shapes of it. It knows no tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from batchloom.models.errors import RequestError
from batchloom.models.families.config import ModelConfig
from batchloom.models.families.table import family_of

StackName = Literal["encoder", "decoder"]
Pooling = Literal["mean", "cls", "last"]
StateOutput = Literal[Pooling, "per_token", "hidden_states", "attentions", "cross_attentions"]
"""mean, cls (the first token's), last, per_token: of one layer. hidden_states, attentions: of all layers."""

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
OF_ALL_LAYERS: tuple[StateOutput, ...] = ("hidden_states", "attentions", "cross_attentions")


@dataclass(frozen=True)
class StateOutputs:
    """Outputs of one stack, whose hidden states are those before the first layer (0) and after each (1, 2, ...)."""

    outputs: tuple[StateOutput, ...]
    stack: StackName
    layer: int
    """Whose states are pooled, or given for each token; from 0."""
    num_layers: int
    num_heads: int
    width: int

    @staticmethod
    def of(
        config: ModelConfig,
        has_encoder: bool,
        outputs: Sequence[StateOutput],
        layer: int = -1,
        stack: StackName | None = None,
    ) -> "StateOutputs":
        """Return what a model of `config` can give; `has_encoder`: whether its class has both stacks.

        By default the stack is the decoder, and the encoder of families whose decoders demand a reply. A negative layer
        counts from the end, -1 is the last. Raises: RequestError where the model has no such stack, layer or output.
        """
        known = (*POOLINGS, "per_token", *OF_ALL_LAYERS)
        if unknown := [one for one in outputs if one not in known]:
            raise RequestError(f"outputs: {unknown[0]!r} is not one we have. Use some of: {', '.join(known)}.")
        stack = _stack_of(config, has_encoder, stack)
        if "cross_attentions" in outputs and not (has_encoder and stack == "decoder"):
            raise RequestError("cross_attentions: only a decoder beside its encoder has them. Leave them out.")
        size = config.encoder if stack == "encoder" else config.decoder
        assert size is not None
        most = size.num_layers
        if not -most - 1 <= layer <= most:
            raise RequestError(
                f"layer = {layer} is none of the {stack}'s: its hidden states are 0 (what the first layer reads) to "
                f"{most} (the last layer's), or {-most - 1} to -1 from the end."
            )
        return StateOutputs(tuple(outputs), stack, layer % (most + 1), most, size.num_heads, config.width)

    @property
    def depth(self) -> int:
        """How many layers have to be computed."""
        return self.num_layers if set(self.outputs) & set(OF_ALL_LAYERS) else self.layer

    @property
    def needs_weights(self) -> bool:
        """Whether attention weights are given."""
        return bool({"attentions", "cross_attentions"} & set(self.outputs))

    def shape(self, output: StateOutput, num_tokens: int) -> tuple[int, ...]:
        """Return the shape of an output for a sequence: [D], [T, D], [layers + 1, T, D] or [layers, heads, T, T].

        Cross-attention is that of a decoder which reads its own input: as many keys as queries.
        """
        if output in POOLINGS:
            return (self.width,)
        if output == "per_token":
            return num_tokens, self.width
        if output == "hidden_states":
            return self.num_layers + 1, num_tokens, self.width
        return self.num_layers, self.num_heads, num_tokens, num_tokens

    def num_values(self, num_tokens: int) -> int:
        """Return how many numbers the outputs for a sequence are together."""
        return sum(prod(self.shape(output, num_tokens)) for output in self.outputs)


def _stack_of(config: ModelConfig, has_encoder: bool, asked: StackName | None) -> StackName:
    if not has_encoder:
        if asked == "encoder":
            raise RequestError("stack = 'encoder': the model has no encoder. Use 'decoder', or leave it out.")
        return "decoder"
    shifts_input = family_of(config).shifts_input
    if asked == "decoder" and not shifts_input:
        raise RequestError(
            f"stack = 'decoder': the decoder of a {config.model_type} model reads a reply, which is not made from the "
            "input in this family. Use 'encoder', or leave it out."
        )
    return asked or ("decoder" if shifts_input else "encoder")
