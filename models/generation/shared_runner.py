"""The runner of a model on several ranks: each call runs on all ranks at once. It knows no queue and no collective.

One scheduler decides, in the leader's engine. The messages are small: requests when they start, the call's name for
a step.
"""

import contextlib
import weakref
from collections.abc import Sequence
from itertools import count

from batchloom.models.errors import ModelError
from batchloom.models.generation.model import GenerativeModel
from batchloom.models.generation.requests import Request
from batchloom.models.generation.runner import Runner
from batchloom.models.generation.search.cohort import Done, StopText
from batchloom.models.ranks.calls import Call
from batchloom.models.ranks.group import TensorParallel

_numbers = count()


class SharedRunner(Runner):
    """The leader's runner. All ranks hold the same requests and choose the same tokens.

    Calls raise what the runner's own do, RankLostError where another rank's process ended, and DeviceError where it
    failed.
    """

    def __init__(self, model: GenerativeModel, stop_text: StopText | None = None) -> None:
        self._group, self._number = model.group, next(_numbers)

        def tell(token_ids: Sequence[int]) -> str:
            assert stop_text is not None
            assert self._group.followers is not None
            text = stop_text(token_ids)
            self._group.followers.send(text)
            return text

        with self._group.collective_call(Call.MAKE_RUNNER, self._number, stop_text is not None):
            super().__init__(model, None if stop_text is None else tell)
        weakref.finalize(self, _forget, self._group, self._number).atexit = False

    def prefill(self, requests: Sequence[Request]) -> int:
        with self._group.collective_call(Call.PREFILL, self._number, requests):
            return super().prefill(requests)

    def decode(self) -> list[Done]:
        with self._group.collective_call(Call.DECODE, self._number):
            return super().decode()

    def clear(self) -> None:
        with self._group.collective_call(Call.CLEAR, self._number):
            super().clear()


def _forget(group: TensorParallel, number: int) -> None:
    with contextlib.suppress(ModelError), group.collective_call(Call.FORGET_RUNNER, number):
        pass
