"""What is read off hidden states, one kind of answer a method. It knows no batch and no rank: SinglePass computes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from batchloom.models.errors import RequestError
from batchloom.models.families.base import LoadedModel
from batchloom.models.single_pass.state_outputs import POOLINGS, Pooling, StackName, StateOutput

Sequences = Sequence[Sequence[int]]


class StatePasses(ABC):
    """Embeddings, hidden states and attention weights, on the CPU, in float32.

    `layer`: 0 is what the first layer reads, N the output of the Nth; the last one's is normed where the family norms
    it, as in transformers' output_hidden_states. Negative ones count from the end. `stack`: by default the decoder, as
    in the reference's feature extraction, and the encoder of the Blenderbots, whose decoders demand a reply.
    """

    model: LoadedModel

    @abstractmethod
    def states(
        self,
        sequences: Sequences,
        outputs: Sequence[StateOutput],
        layer: int = -1,
        stack: StackName | None = None,
        normalize: bool = False,
    ) -> list[dict[StateOutput, Tensor]]:
        """Return several outputs for each sequence by one forward; state_outputs.py has what they are and their shapes.

        `normalize` scales the vectors of `layer` to length one. No layer is computed above the last that is needed.

        Raises: RequestError for an output, a layer or a stack that the model does not have, or where it cannot read a
        sequence.
        """

    @overload
    def embed(
        self,
        sequences: Sequences,
        pooling: Pooling = "mean",
        normalize: bool = False,
        layer: int = -1,
        stack: StackName | None = None,
    ) -> Tensor: ...

    @overload
    def embed(
        self,
        sequences: Sequences,
        pooling: list[Pooling] | tuple[Pooling, ...],
        normalize: bool = False,
        layer: int = -1,
        stack: StackName | None = None,
    ) -> dict[Pooling, Tensor]: ...

    def embed(
        self,
        sequences: Sequences,
        pooling: Pooling | list[Pooling] | tuple[Pooling, ...] = "mean",
        normalize: bool = False,
        layer: int = -1,
        stack: StackName | None = None,
    ) -> Tensor | dict[Pooling, Tensor]:
        """Return one vector [D] for each sequence, pooled from a layer's hidden states: [sequences, D].

        Of several poolings, such tensors by pooling. Raises: as `states`.
        """
        poolings: tuple[Pooling, ...] = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if unknown := [one for one in poolings if one not in POOLINGS]:
            raise RequestError(f"pooling = {unknown[0]!r} is not one we have. Use 'mean', 'cls' or 'last'.")
        found = self.states(sequences, poolings, layer, stack, normalize)
        vectors = {one: self._stacked([own[one] for own in found]) for one in poolings}
        return vectors[pooling] if isinstance(pooling, str) else vectors

    def hidden_states(
        self, sequences: Sequences, layer: int = -1, stack: StackName | None = None, normalize: bool = False
    ) -> list[Tensor]:
        """Return a layer's hidden states [T, D] of each sequence. Raises: as `states`."""
        return [own["per_token"] for own in self.states(sequences, ["per_token"], layer, stack, normalize)]

    def all_hidden_states(self, sequences: Sequences, stack: StackName | None = None) -> list[Tensor]:
        """Return the hidden states [layers + 1, T, D] of each sequence. Raises: as `states`."""
        return [own["hidden_states"] for own in self.states(sequences, ["hidden_states"], stack=stack)]

    def attentions(self, sequences: Sequences, stack: StackName | None = None) -> list[Tensor]:
        """Return the weights [layers, heads, T, T] of each sequence's self-attention. Raises: as `states`."""
        return [own["attentions"] for own in self.states(sequences, ["attentions"], stack=stack)]

    def _stacked(self, vectors: list[Tensor]) -> Tensor:
        return torch.stack(vectors) if vectors else torch.empty(0, self.model.hidden_size)
