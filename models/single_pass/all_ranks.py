"""A method of single passes runs on every rank of its model. It knows no head."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from batchloom.models.device import is_out_of_memory
from batchloom.models.families.base import LoadedModel
from batchloom.models.ranks.calls import Call
from batchloom.models.single_pass.batches import Batches

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
Sequences = Sequence[Sequence[int]]


class Passes(Protocol):
    """What such a method is one of."""

    model: LoadedModel
    _batches: Batches

    @property
    def max_batch_tokens(self) -> int: ...


Owner = TypeVar("Owner", bound=Passes)


def on_all_ranks(method: Callable[Concatenate[Owner, Sequences, Arguments], Result]) -> Callable[..., Result]:
    """Make a method of SinglePass run on every rank of its model; the leader's result is returned.

    Where memory runs out on one of several ranks, all begin again with half the budget: the longest come first, so that
    this happens early. An out-of-memory error is raised when the longest sequence was already computed alone.
    """

    @wraps(method)
    def call(self: Owner, sequences: Sequences, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        while True:
            told = (method.__name__, self.max_batch_tokens, (sequences, *arguments), keywords)
            try:
                with self.model.group.collective_call(Call.SINGLE_PASS, *told):
                    return method(self, sequences, *arguments, **keywords)
            except (RuntimeError, MemoryError) as error:
                costs = _costs(sequences, keywords.get("targets", arguments[0] if arguments else None), method.__name__)
                is_alone = self.max_batch_tokens <= max(costs, default=0)
                if self.model.group.followers is None or is_alone or not is_out_of_memory(error):
                    raise
            self._batches.halve(min(self.max_batch_tokens, sum(costs)))

    return call


def _costs(sequences: Sequences, targets: Any, method: str) -> list[int]:
    """Return the tokens of each sequence, with those of its targets where these are scored."""
    costs = [len(sequence) for sequence in sequences]
    if targets is None or method not in ("score", "score_targets"):
        return costs
    own = [[target] if method == "score" else target for target in targets]
    return [cost + sum(map(len, each)) for cost, each in zip(costs, own, strict=False)]
