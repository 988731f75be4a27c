"""Jobs of one process leave no threads of Ray Data's behind."""

import threading

import ray.data._internal.block_batching.iter_batches as iterating

from batchloom.pipelines import lazy_prefetcher


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_no_thread_is_started_where_nothing_is_prefetched() -> None:
    """One a job stayed as long as the process."""
    eager, before = iterating.WaitBlockPrefetcher, names()
    with lazy_prefetcher.in_use():
        list(iterating.BatchIterator(iter([]), prefetch_batches=0))
        assert iterating.WaitBlockPrefetcher is not eager
    assert names() == before
    assert iterating.WaitBlockPrefetcher is eager


def test_what_is_prefetched_is_so_by_rays_own() -> None:
    with lazy_prefetcher.in_use():
        prefetcher = iterating.WaitBlockPrefetcher()
        before = names()
        prefetcher.prefetch_blocks([])
        (thread,) = [one for one in threading.enumerate() if one.name not in before]
        assert thread.name == "Prefetcher"
        prefetcher.stop()
        thread.join(5)
        assert not thread.is_alive()
