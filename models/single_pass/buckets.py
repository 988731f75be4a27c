"""Buckets: requests of similar length, longest first, under a token budget. The one place that orders by length.

    lengths [3, 9, 2, 8, 3], budget 18          bucket 0: [9 8]      17 tokens
                                                bucket 1: [3 3 2]     8 tokens

A bucket is what a single pass computes as one batch and what an engine prefills together. Batches are packed, so a
bucket costs the sum of its tokens. Longest first means that what is left at a unit's end is short, and that a device
too small for the largest bucket fails at once and not after hours. It knows lengths, no tensor and no request.
"""

from collections.abc import Iterator, Sequence

# Tokens of a single pass's batch. Beyond a few thousand a CPU only loses its caches; an accelerator needs more to be
# busy.
CPU_BATCH_TOKENS = 2048
DEVICE_BATCH_TOKENS = 32768


def cut_into_buckets(
    lengths: Sequence[int], max_tokens: int, order_by: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield buckets of indices: each index in exactly one, a request longer than `max_tokens` in one of its own.

    `order_by`: the lengths by which requests are similar, where that is not the whole of them. Requests of equal length
    keep their order, so equal lengths always make equal buckets.
    """
    keys = lengths if order_by is None else order_by
    order = sorted(range(len(lengths)), key=lambda index: -keys[index])
    members: list[int] = []
    num_tokens = 0
    for index in order:
        if members and num_tokens + lengths[index] > max_tokens:
            yield members
            members, num_tokens = [], 0
        members.append(index)
        num_tokens += lengths[index]
    if members:
        yield members


def best_batch_tokens(device_type: str) -> int:
    """Return the tokens of a batch with which single passes are fastest on a device: "cpu" or an accelerator."""
    return CPU_BATCH_TOKENS if device_type == "cpu" else DEVICE_BATCH_TOKENS
