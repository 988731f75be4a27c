"""Worker threads that compute concurrently, and how many of torch's threads each uses. They know no tensor.

torch splits each operation over its threads, which synchronize after it. Independent work is faster on one thread each,
the more so where other processes use the cores too.

The number of torch's threads is a setting of each thread. A thread without one inherits what any thread set last, so
whoever sets it in a worker must set its own again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import torch


def side_by_side(work: Callable[[], None], num_workers: int, num_threads: int) -> None:
    """Run `work` in `num_workers` threads at once, which share `num_threads` of torch's.

    One worker is the caller's own thread.

    Raises: whatever `work` raised, in one of the threads.
    """
    if num_workers <= 1:
        work()
        return
    are_set = Barrier(num_workers + 1)

    def worker() -> None:
        use_threads(max(1, num_threads // num_workers))
        are_set.wait()
        work()

    with ThreadPoolExecutor(num_workers) as executor:
        workers = [executor.submit(worker) for _ in range(num_workers)]
        are_set.wait()
        torch.set_num_threads(num_threads)
        for one in workers:
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
    """Let this thread's operations use `num_threads` of torch's threads."""
    torch.get_num_threads()  # makes the thread inherit its setting now: later that would overwrite this number
    torch.set_num_threads(num_threads)
