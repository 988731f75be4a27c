"""Threads that compute side by side, and how many of torch's threads each has. They know no tensor.

torch cuts each operation over its threads, which wait for one another at the end of each. Parts of work that do not
need one another go faster on a thread for each part, the more so where other processes want the cores too.

How many threads torch uses belongs to a thread. A thread that is asked for the first time takes what any thread was
given last: so whoever sets another's number sets its own again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import torch


def side_by_side(work: Callable[[], None], num_workers: int, num_threads: int) -> None:
    """Run `work` in several threads at once, which share `num_threads` of torch's; in this thread where one is enough.

    Raises: what `work` raises, when all threads have ended.
    """
    if num_workers <= 1:
        work()
        return
    are_set = Barrier(num_workers + 1)

    def run() -> None:
        use_threads(max(1, num_threads // num_workers))
        are_set.wait()
        work()

    with ThreadPoolExecutor(num_workers) as pool:
        runs = [pool.submit(run) for _ in range(num_workers)]
        are_set.wait()
        torch.set_num_threads(num_threads)
        for one in runs:
            one.result()


def start_workers(work: Callable[[], None], num_workers: int, num_threads: int, name: str) -> None:
    """Start daemon threads that run `work` side by side and share `num_threads` of torch's."""
    are_set = Barrier(num_workers + 1)

    def run() -> None:
        use_threads(max(1, num_threads // num_workers))
        are_set.wait()
        work()

    for number in range(num_workers):
        Thread(target=run, name=f"{name} {number}", daemon=True).start()
    are_set.wait()
    torch.set_num_threads(num_threads)


def use_threads(num_threads: int) -> None:
    """Let what this thread computes be cut over `num_threads` of torch's threads."""
    torch.get_num_threads()  # asked here for the first time, or the thread would take over another's number later
    torch.set_num_threads(num_threads)
