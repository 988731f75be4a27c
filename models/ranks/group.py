"""The tensor-parallel group: which rank this is, how many there are, and the sums they need. It knows no model.

With one rank every operation is the identity and torch.distributed is never touched, so layers call it unconditionally.
Column-parallel weights are cut along their output rows, row-parallel weights along their input columns:

    x_ND --ColumnLinear--> [N, F / size] --activation--> --RowLinear--> all_reduce --> + bias (once, after the sum)
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from batchloom.models.ranks.connection import LOOPBACK
from batchloom.models.ranks.division import share

# Ranks wait for each other inside a call only, never for work: what takes longer than this is stuck.
TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Part:
    """What a rank holds of one tensor of the checkpoint: all of it, a run of its rows, or an equal run of columns."""

    whole_shape: tuple[int, ...]  # the tensor's shape in the file
    rows: slice | None = None  # None: all
    is_columns: bool = False  # one for each rank, in their order


class Followers(Protocol):
    """The processes of the other ranks, as the first rank sees them."""

    def together(self, call: str, *arguments: Any) -> AbstractContextManager[None]: ...

    def send(self, message: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TensorParallel:
    """The ranks that hold one model together."""

    rank: int = 0
    size: int = 1
    collectives: "Collectives | None" = None
    """None: one rank, or a model that is looked at and not run."""
    followers: Followers | None = field(default=None, repr=False)
    """On the first rank: the others, who have to be told what to do. None elsewhere."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.collectives is not None:
            self.collectives.reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors side by side along the last dimension: [..., V] -> [..., V * size]."""
        return tensor if self.collectives is None else torch.cat(self.collectives.gather(tensor, self.size), dim=-1)

    def exchange(self, tensor: Tensor) -> Tensor:
        """To each rank the row that is its own, from each the one that is ours: [size, ...] by rank, both."""
        return tensor if self.collectives is None else self.collectives.exchange(tensor)

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        if self.collectives is None:
            return number
        lowest = torch.tensor([number], device=self.collectives.device)
        self.collectives.reduce(lowest, dist.ReduceOp.MIN)
        return int(lowest)

    def together(self, call: str, *arguments: Any) -> AbstractContextManager[None]:
        """For this rank's part of a call that all ranks do at once; the first rank tells the others here.

        A call is a name of models/ranks/follower.py with picklable arguments. Calls from several threads wait for
        each other.
        """
        return nullcontext() if self.followers is None else self.followers.together(call, *arguments)

    def share(self, count: int, what: str) -> int:
        """How many of `count` each rank holds. Raises DeviceError, naming fitting sizes, where it cannot be divided."""
        return share(count, self.size, what)


SINGLE = TensorParallel()


class OutOfStepError(RuntimeError):
    """Another rank is not in the call that this one is in: it ended, or left for want of memory."""


class Collectives:
    """Sums and gathers among the ranks of one model: NCCL on accelerators, gloo on CPUs.

    A group of its own and not torch.distributed's default, of which a process has one: it may hold several models.
    """

    def __init__(
        self, file: str, rank: int, size: int, device: torch.device, host: str = LOOPBACK, store: Any = None
    ) -> None:
        """`file`: where ranks of one node meet (open_file); those of several meet in the first one's `store`.

        `host`: the address under which the others reach this rank.
        """
        self.device, self._file, self._host, self._store = device, file, host, store
        self._rank, self._size = rank, size
        self._num_meetings = 0
        self._group: Any = None
        self.is_aborted = False

    def meet(self) -> "Collectives":
        """Joins the other ranks in a new group, when all are there; what was under way in an old one is lost."""
        self._num_meetings += 1
        self.is_aborted = False
        stores: Any = dist  # whose names torch does not export by its types
        meetings = self._store or stores.FileStore(self._file, self._size)
        store = stores.PrefixStore(f"meeting-{self._num_meetings}", meetings)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # NCCL takes memory of its own
            self._group = _nccl(store, self._rank, self._size)
        else:
            self._group = _gloo(store, self._rank, self._size, self._host)
        with torch.device(self.device):
            self.reduce(torch.zeros(1), dist.ReduceOp.SUM)  # connections are made by the first use
        return self

    def reduce(self, tensor: Tensor, operation: Any) -> None:
        """Reduces over the ranks, in place; all get the same bits."""
        options = dist.AllreduceOptions()
        options.reduceOp = operation
        with self._in_step():
            self._group.allreduce([tensor], options).wait()

    def gather(self, tensor: Tensor, size: int) -> list[Tensor]:
        """The tensors of all ranks, equal in shape, by rank."""
        parts = [torch.empty_like(tensor) for _ in range(size)]
        with self._in_step():
            self._group.allgather([parts], [tensor.contiguous()]).wait()
        return parts

    def exchange(self, tensor: Tensor) -> Tensor:
        """Row r of the tensor goes to rank r; row r of the result comes from there."""
        received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        # As bytes: not every backend moves every dtype.
        with self._in_step():
            self._group.alltoall_base(received.view(torch.uint8), tensor.contiguous().view(torch.uint8), [], []).wait()
        return received

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Raises OutOfStepError where another rank does not do its part of what is done in here."""
        try:
            if self._group is None:
                raise OutOfStepError("this rank has left its group")
            yield
        except RuntimeError as error:
            raise OutOfStepError(str(error)) from error
        self.check()

    def check(self) -> None:
        """Raises OutOfStepError where the group was aborted: what came out of it since is no result."""
        if self.is_aborted:
            raise OutOfStepError("the group was aborted")

    def abort(self) -> None:
        """Ends what waits for a rank that is gone. Gloo sees that itself, by the closed connection."""
        if self._group is not None and self.device.type == "cuda":
            self.is_aborted = True
            self._group.abort()

    def close(self) -> None:
        """Leaves the group, which every rank that waits for this one notices.

        Its threads must be gone before the interpreter is, or the process ends with an abort.
        """
        self.abort()
        self._group = None


def open_file() -> str:
    """What ranks of one node meet in: the path of an empty file, which this user alone can read.

    On Linux it is in no folder, so nothing is left behind, whatever is killed; it ends with this process. It is never
    closed: a thread that waits for a lost rank opens it by its number, which must not come to mean another file.
    """
    if hasattr(os, "memfd_create"):
        return f"/proc/{os.getpid()}/fd/{os.memfd_create('batchloom-ranks')}"
    descriptor, path = tempfile.mkstemp(prefix="batchloom-ranks-")  # the store removes it when all have left
    os.close(descriptor)
    return path


def open_store(host: str, port: int = 0) -> Any:
    """What ranks of several nodes meet in: the first one's, where no port is given, else a connection to it."""
    stores: Any = dist
    return stores.TCPStore(host, port, is_master=not port, wait_for_workers=False, timeout=TIMEOUT)


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
