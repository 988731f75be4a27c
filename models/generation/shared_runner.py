"""A runner whose model lies on several ranks: the others run the same beside it. It knows no queue and no collective.

One scheduler decides, in the first rank's engine. What travels is small: requests when they start, a word for a step.
"""

import contextlib
import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any

from batchloom.models.errors import ModelError
from batchloom.models.generation.requests import Request
from batchloom.models.generation.runner import Runner
from batchloom.models.generation.search.cohort import Done, StopText
from batchloom.models.ranks.calls import Call

_numbers = count()


class SharedRunner(Runner):
    """The first rank's runner. Each call runs on all ranks: they hold the same requests and choose the same tokens."""

    def __init__(self, model: Any, stop_text: StopText | None = None) -> None:
        self._group, self._number = model.group, next(_numbers)

        def tell(token_ids: Sequence[int]) -> str:
            assert stop_text is not None
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


def _forget(group: Any, number: int) -> None:
    with contextlib.suppress(ModelError), group.collective_call(Call.FORGET_RUNNER, number):
        pass
