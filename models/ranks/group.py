"""The tensor-parallel group: this rank, the number of ranks, and their collective operations. It knows no model.

With one rank every operation is the identity and torch.distributed is never touched, so layers call it unconditionally.
Column-parallel weights are split along their output rows, row-parallel weights along their input columns:

    x_ND --ColumnLinear--> [N, F / size] --activation--> --RowLinear--> all_reduce --> + bias (once, after the sum)
"""

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from batchloom.models.ranks.calls import Call
from batchloom.models.ranks.connection import LOOPBACK
from batchloom.models.ranks.division import share

# Ranks wait for each other only inside a call, never for work: a collective that takes longer than this is stuck.
TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class TensorSlice:
    """What a rank holds of one tensor of the checkpoint: all of it, a slice of its rows, or 1 / size of its columns."""

    whole_shape: tuple[int, ...]  # the tensor's shape in the file
    rows: slice | None = None  # None: all
    is_columns: bool = False  # the rank-th of `size` equal slices of columns


class Followers(Protocol):
    """The processes of the other ranks, as the leader uses them: models/ranks/processes.py."""

    def collective_call(self, call: Call, *arguments: Any) -> AbstractContextManager[None]: ...

    def send(self, message: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TensorParallel:
    """The ranks that hold one model together. Rank 0 is the leader, the caller's process; the others follow it."""

    rank: int = 0
    size: int = 1
    collectives: "Collectives | None" = None
    """None: one rank, or a model that is inspected and not run."""
    followers: Followers | None = field(default=None, repr=False)
    """On the leader of several ranks: the others' processes, to which it sends each call. None on all other ranks."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place, and return the tensor. Raises: OutOfStepError where another rank left."""
        if self.collectives is not None:
            self.collectives.reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the ranks' tensors along the last dimension: [..., V] -> [..., V * size].

        Raises: OutOfStepError where another rank left.
        """
        return tensor if self.collectives is None else torch.cat(self.collectives.gather(tensor, self.size), dim=-1)

    def exchange(self, tensor: Tensor) -> Tensor:
        """All-to-all: row r of [size, ...] goes to rank r, row r of the result comes from rank r.

        Raises: OutOfStepError where another rank left.
        """
        return tensor if self.collectives is None else self.collectives.exchange(tensor)

    def all_reduce_min(self, number: int) -> int:
        """Return the minimum of the ranks' numbers, the same on all. Raises: OutOfStepError where another rank left."""
        if self.collectives is None:
            return number
        lowest = torch.tensor([number], device=self.collectives.device)
        self.collectives.reduce(lowest, dist.ReduceOp.MIN)
        return int(lowest)

    def collective_call(self, call: Call, *arguments: Any) -> AbstractContextManager[None]:
        """Return a context for this rank's share of a call that all ranks execute; the leader sends it to the others.

        `arguments` are picklable, as models/ranks/follower.py takes them. Calls from several threads wait for each
        other. Raises: as FollowerProcesses.collective_call does.
        """
        return nullcontext() if self.followers is None else self.followers.collective_call(call, *arguments)

    def share(self, count: int, what: str) -> int:
        """Return how many of `count` each rank holds. Raises: DeviceError, which lists sizes that divide it."""
        return share(count, self.size, what)


SINGLE = TensorParallel()


class OutOfStepError(RuntimeError):
    """Another rank is not in the call that this one is in: its process ended, or it ran out of memory and left."""


class Collectives:
    """Collective operations among the ranks of one model: NCCL on GPUs, gloo on CPUs.

    A process group of its own, not torch.distributed's default group, of which a process has only one: a process may
    hold several models.
    """

    def __init__(self, store: Any, rank: int, size: int, device: torch.device, host: str = LOOPBACK) -> None:
        """Set up without connecting; `join` connects.

        `store`: the ranks' rendezvous (open_store). `host`: the address at which the others reach this rank.
        """
        self.device, self._host, self._store = device, host, store
        self._rank, self._size = rank, size
        self._num_joins = 0
        self._group: Any = None
        self.is_aborted = False

    def join(self) -> "Collectives":
        """Join the other ranks in a new group and return self; blocks until all have joined.

        Operations under way in an earlier group are lost. Raises: RuntimeError where not all join within TIMEOUT.
        """
        self._num_joins += 1
        self.is_aborted = False
        stores: Any = dist  # whose names torch does not export by its types
        store = stores.PrefixStore(f"group-{self._num_joins}", self._store)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # NCCL allocates outside torch's caching allocator
            self._group = _nccl(store, self._rank, self._size)
        else:
            self._group = _gloo(store, self._rank, self._size, self._host)
        with torch.device(self.device):
            self.reduce(torch.zeros(1), dist.ReduceOp.SUM)  # warm-up: connections are made by the first use
        return self

    def reduce(self, tensor: Tensor, operation: Any) -> None:
        """All-reduce in place; every rank gets the same bits. Raises: OutOfStepError where another rank left."""
        options = dist.AllreduceOptions()
        options.reduceOp = operation
        with self._in_step():
            self._group.allreduce([tensor], options).wait()

    def gather(self, tensor: Tensor, size: int) -> list[Tensor]:
        """Return the tensors of all ranks, equal in shape, by rank. Raises: OutOfStepError where another rank left."""
        gathered = [torch.empty_like(tensor) for _ in range(size)]
        with self._in_step():
            self._group.allgather([gathered], [tensor.contiguous()]).wait()
        return gathered

    def exchange(self, tensor: Tensor) -> Tensor:
        """Send row r of the tensor to rank r; row r of the result comes from it. Raises: as `reduce`."""
        received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        # As bytes: not every backend moves every dtype.
        with self._in_step():
            self._group.alltoall_base(received.view(torch.uint8), tensor.contiguous().view(torch.uint8), [], []).wait()
        return received

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Raise OutOfStepError where another rank does not take part in the operation in the `with` block."""
        try:
            if self._group is None:
                raise OutOfStepError("this rank has left its group")
            yield
        except RuntimeError as error:
            raise OutOfStepError(str(error)) from error
        self.check()

    def check(self) -> None:
        """Raise OutOfStepError where the group was aborted: results since then are not valid."""
        if self.is_aborted:
            raise OutOfStepError("the group was aborted")

    def abort(self) -> None:
        """Abort operations that wait for a lost rank (NCCL). Gloo notices by itself, from the closed connection."""
        if self._group is not None and self.device.type == "cuda":
            self.is_aborted = True
            self._group.abort()

    def close(self) -> None:
        """Leave the group; every rank that waits for this one notices. Idempotent.

        Must come before the interpreter exits: the group's threads would abort the process.
        """
        self.abort()
        self._group = None


def open_store(host: str, port: int = 0) -> Any:
    """Return the ranks' rendezvous: served here where no port is given, else a connection to it.

    Not a FileStore, though one node would do with it: a rank killed while it writes leaves half a record, which every
    other rank then reads for ever, holding Python's lock. Raises: RuntimeError where it cannot be reached.
    """
    stores: Any = dist
    options: dict[str, Any] = {"wait_for_workers": False, "timeout": TIMEOUT}
    if port:
        return stores.TCPStore(host, port, is_master=False, **options)
    listening = socket.create_server((host, 0))  # a store that listens by itself does so on all interfaces
    port = listening.getsockname()[1]
    return stores.TCPStore(host, port, is_master=True, master_listen_fd=listening.detach(), **options)


def _gloo(store: Any, rank: int, size: int, host: str) -> Any:
    backend: Any = dist.ProcessGroupGloo
    options = backend._Options()
    options._devices = [backend.create_device(hostname=host)]
    options._timeout = TIMEOUT
    return backend(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int) -> Any:
    backend: Any = c10d.ProcessGroupNCCL
    options = backend.Options()
    options._timeout = TIMEOUT
    return backend(store, rank, size, options)
