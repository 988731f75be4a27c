"""Prefix caching: token ids that several prompts begin with, and their keys and values. It knows no model.

Prompts made from one template, or with the same few-shot examples, begin alike. The common prefix is computed once and
held as one memory, which each decode step reads once for all sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from batchloom.models.generation.memory.prompt_memory import PromptMemory

MIN_SHARED = 32  # tokens: for a shorter prefix, one more memory to attend to costs more than it saves
MAX_HELD = 4  # prefixes kept for prompts that are still to come


@dataclass(frozen=True)
class Prefix:
    """Token ids that prompts begin with, and their keys and values."""

    token_ids: tuple[int, ...]
    memory: PromptMemory


class Prefixes:
    """The prefixes held, keyed by their first MIN_SHARED tokens; beyond MAX_HELD the oldest is dropped.

    Take the lock `computing` from `missing` until `hold`, so that a prefix missed by several lanes is computed once.
    """

    def __init__(self) -> None:
        self.computing = Lock()
        self._held: dict[tuple[int, ...], Prefix] = {}

    def find(self, prompt_ids: Sequence[int]) -> Prefix | None:
        """Return the held prefix that a prompt begins with, its last token excepted."""
        prefix = self._held.get(_key(prompt_ids))
        if prefix is None or tuple(prompt_ids[: len(prefix.token_ids)]) != prefix.token_ids:
            return None
        return prefix if len(prefix.token_ids) < len(prompt_ids) else None

    def missing(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Return the prefixes that several of these prompts share and that are not held."""
        alike: dict[tuple[int, ...], list[Sequence[int]]] = {}
        for prompt_ids in prompts:
            if len(prompt_ids) > MIN_SHARED and self.find(prompt_ids) is None:
                alike.setdefault(_key(prompt_ids), []).append(prompt_ids)
        return [_common(group) for group in alike.values() if len(group) > 1]

    def hold(self, prefix: Prefix) -> None:
        """Keep a prefix, and drop the oldest beyond MAX_HELD."""
        self._held[_key(prefix.token_ids)] = prefix
        while len(self._held) > MAX_HELD:
            del self._held[next(iter(self._held))]

    def clear(self) -> None:
        """Drop all prefixes."""
        self._held.clear()


def _key(prompt_ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(prompt_ids[:MIN_SHARED])


def _common(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the longest common prefix without any prompt's last token, which the first decode step reads."""
    ordered = sorted(list(prompt_ids) for prompt_ids in prompts)
    first, last = ordered[0], ordered[-1]  # in sorted order, what these two share is shared by all
    most = min(map(len, ordered)) - 1
    length = next((place for place in range(most) if first[place] != last[place]), most)
    return tuple(first[:length])
