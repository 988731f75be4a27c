"""A GPU that is none: its tensors say that they lie on `cuda`, and their numbers lie on the CPU.

What a GPU refuses is refused: tensors of two devices in one operation, numpy's view of a tensor, a wait inside of a
graph that is captured. What a GPU is slow at is counted: times that the host waits for it, and uploads that block. It
says nothing about speed, and its results are the CPU's.

PyTorch without CUDA knows the device's name and has no kernel for it: here one Python function stands for all of them.
The guard that switches devices is all that needs C++: torch's own, which does nothing, under CUDA's name.
"""

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
"""
SIZED_BY_VALUES = {  # the host must learn from the device how large the result is
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default,
    aten.unique_dim.default, aten.bincount.default,
}  # fmt: skip
READ_BY_HOST = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class PretendTensor(Tensor):
    """A tensor on the pretend GPU."""

    numbers: Tensor
    gpu: "PretendGpu"

    @staticmethod
    def __new__(cls, numbers: Tensor, gpu: "PretendGpu") -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers, made.gpu = numbers, gpu
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PretendTensor))
        with torch.inference_mode(False), torch.no_grad():  # in inference mode a subclass has no views,
            if func._can_decompose():  # and operations come here that are made of others
                return func.decompose(*args, **(kwargs or {}))
            return gpu.run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        raise RuntimeError("a pretend GPU has no addresses: a kernel of Triton has tests of its own")


@dataclass
class PretendGpu:
    """Counts of what was asked of it."""

    waits: Counter[str] = field(default_factory=Counter)
    """Times that the host waited for all that was queued, by operation; blocking uploads are among them."""
    operations: Counter[str] = field(default_factory=Counter)
    """Of the host: a graph that is replayed is one."""
    launches: Counter[str] = field(default_factory=Counter)
    """What captured graphs start on the device at each replay, by operation: all but views."""
    num_captures: int = 0
    num_bytes_up: int = 0
    _recorded: "list[Callable[[], object]] | None" = None

    def forget(self) -> None:
        """Count from here on."""
        self.waits.clear()
        self.operations.clear()
        self.launches.clear()
        self.num_captures = 0
        self.num_bytes_up = 0

    def wait(self, why: str) -> None:
        if self._recorded is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {why}")
        self.waits[why] += 1

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on the numbers. Raises: RuntimeError where a GPU would."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(leaf.is_cuda and not isinstance(leaf, PretendTensor) for leaf in leaves):
            raise AssertionError(f"{func}: a tensor on cuda that is not the pretend GPU's")
        is_copy = func in (aten._to_copy.default, aten.copy_.default)
        to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if is_copy:
            self._count_copy(func, args, kwargs, to)
        else:
            self._check(func, args, kwargs, leaves)
        owners = {id(leaf.numbers): leaf for leaf in leaves if isinstance(leaf, PretendTensor)}
        bare, options = tree_map(lambda leaf: getattr(leaf, "numbers", leaf), (args, dict(kwargs)))
        if to is not None:
            options["device"] = "cpu"
        if options.get("pin_memory") is not None:
            options["pin_memory"] = False
        result = func(*bare, **options)
        self.operations[str(func)] += 1
        if self._recorded is not None and func not in (aten.empty.memory_format, aten.empty_strided.default):
            self._record(func, bare, options, result)
        stays = (is_copy and to is not None and to.type == "cpu") or (
            func is aten.copy_.default and not isinstance(args[0], PretendTensor)
        )
        if stays:
            return result if func is not aten.copy_.default else args[0]
        return tree_map(lambda leaf: self._owned(leaf, owners), result)

    def _owned(self, leaf: Any, owners: dict[int, PretendTensor]) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        owner = owners.get(id(leaf))  # in place: the tensor that was given
        if owner is None:
            return PretendTensor(leaf, self)
        assert owner.shape == leaf.shape, "a tensor changed its shape, which its wrapper does not hear of"
        return owner

    def _count_copy(self, func: Any, args: Any, kwargs: Any, to: torch.device | None) -> None:
        """Count what crosses between host and device."""
        if func is aten.copy_.default:
            target, source = args[0], args[1]
            is_up, is_down = not isinstance(source, PretendTensor), not isinstance(target, PretendTensor)
            is_queued = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            source = args[0]
            is_on_device = isinstance(source, PretendTensor)
            is_up = not is_on_device and to is not None and to.type == "cuda"
            is_down = is_on_device and to is not None and to.type == "cpu"
            is_queued = bool(kwargs.get("non_blocking"))
        if is_up and source.numel():
            self.num_bytes_up += source.numel() * source.element_size()
            if not (is_queued and getattr(source, "is_pretended_pinned", False)):
                self.wait("an upload that blocks")
        if is_down and not is_queued:
            self.wait("a download")

    def _check(self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor]) -> None:
        """Refuse two devices, and count waits."""
        strangers = [leaf for leaf in leaves if not isinstance(leaf, PretendTensor) and leaf.dim()]
        if func in INDEXED:
            indexes = [index for index in args[1] if index is not None]
            for index in strangers:  # torch uploads indexes on its own
                if any(index is one for one in indexes):
                    self.wait("an index on the host")
            strangers = [leaf for leaf in strangers if not any(leaf is one for one in indexes)]
            fills = len(args) > 2 and args[2].numel() == 1 and len(indexes) == 1  # torch fills by the mask then
            if any(index.dtype in (torch.bool, torch.uint8) for index in indexes) and not fills:
                self.wait("an index by truth")
        if strangers and len(strangers) < len(leaves):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} of cuda:0 and cpu")
        if func in SIZED_BY_VALUES or func in READ_BY_HOST:
            self.wait(str(func))
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.wait(str(func))

    # ------------------------------------------------------------------------------------------------------- graphs

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Keep an operation. Replayed, it writes to where its results lay: a view lies where it lay anyway."""
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

        def again() -> None:
            for old, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)

        assert self._recorded is not None
        self._recorded.append(again)
        is_view = all(result.untyped_storage().data_ptr() in given for result in results)
        if func._schema.is_mutable or not is_view:
            self.launches[str(func)] += 1

    @contextmanager
    def capturing(self, graph: "PretendGraph", **_: Any) -> Iterator[None]:
        assert self._recorded is None
        graph.gpu, self._recorded = self, graph.operations
        self.num_captures += 1
        try:
            yield
        finally:
            self._recorded = None


@dataclass
class PretendGraph:
    """Operations that are run again, one after the other, on the tensors that they had."""

    gpu: PretendGpu | None = None
    operations: list[Callable[[], object]] = field(default_factory=list)

    def replay(self) -> None:
        assert self.gpu is not None, "nothing was captured"
        self.gpu.operations["replay"] += 1
        for operation in self.operations:
            operation()

    def pool(self) -> object:
        return None


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: object) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def pretending(folder: Path) -> Iterator[PretendGpu]:
    """Pretend that this process has a GPU. `folder`: for the guard, which is compiled once in it.

    Skips the test where torch has CUDA's kernels, or where nothing compiles the guard.
    """
    if torch.version.cuda is not None:
        pytest.skip("needs a torch without CUDA: this one has kernels of its own")
    load_guard(folder)
    gpu = PretendGpu()
    kernels = torch.library.Library("_", "IMPL", "CUDA")
    kernels.fallback(lambda func, *args, **kwargs: gpu.run(func, args, kwargs))
    with pytest.MonkeyPatch.context() as patch:
        _patch_torch(patch, gpu)
        try:
            yield gpu
        finally:
            kernels._destroy()


def load_guard(folder: Path) -> None:
    """Compile and load torch's own guard that does nothing, as CUDA's."""
    library = folder / "guard.so"
    if not library.exists():
        source, torch_folder = folder / "guard.cpp", Path(torch.__file__).parent
        source.write_text(GUARD)
        command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{torch_folder}/include", str(source)]
        command += ["-o", str(library), f"-L{torch_folder}/lib", "-lc10"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("needs g++")
        if done.returncode:
            pytest.skip(f"g++ does not compile torch's headers: {done.stderr[-300:]}")
    torch.ops.load_library(str(library))


def _patch_torch(patch: pytest.MonkeyPatch, gpu: PretendGpu) -> None:
    """Let torch.cuda and what makes tensors know the device, until the patch is undone."""
    tensor, zeros, arange = torch.tensor, torch.zeros, torch.arange

    def make_tensor(values: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = tensor(values, *args, **kwargs)  # in C++ it goes around us
        return made if device is None else made.to(device)

    def make_zeros(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return _pinned(zeros(*args, **kwargs)) if pin_memory else zeros(*args, **kwargs)

    def make_range(start: Any, end: Any = None, step: Any = 1, *, device: Any = None, **kwargs: Any) -> Tensor:
        first, last = (0, start) if end is None else (start, end)
        if device is None or torch.device(device).type != "cuda":
            return arange(first, last, step, device=device, **kwargs)
        with torch.inference_mode(False):  # at once: torch makes an empty one, and changes its shape
            return gpu.run(aten.arange.start_step, (first, last, step), {**kwargs, "device": device})

    patch.setattr(torch, "tensor", make_tensor)
    patch.setattr(torch, "arange", make_range)
    patch.setattr(torch, "zeros", make_zeros)
    patch.setattr(torch.Tensor, "pin_memory", lambda self: _pinned(self.clone()))
    values: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: (8, 0),
        "get_per_process_memory_fraction": lambda *_: 1.0,
        "mem_get_info": lambda *_: (1 << 30, 1 << 30),
        "memory_reserved": lambda *_: 0,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: gpu.wait("torch.cuda.synchronize"),
        "current_stream": _Stream,
        "Stream": _Stream,
        "Event": _Stream,
        "stream": lambda *_: nullcontext(),
        "device": lambda *_: nullcontext(),
        "CUDAGraph": PretendGraph,
        "graph": gpu.capturing,
    }
    for name, value in values.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)


def _pinned(tensor: Tensor) -> Tensor:
    tensor.is_pretended_pinned = True  # type: ignore[attr-defined]
    return tensor
