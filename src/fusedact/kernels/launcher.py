"""Launches of Triton kernels with little host time, on the tensors' GPU, and in a graph's capture too."""

from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from .. import _torch

Grid = tuple[int, int, int]

# compiled.run(*grid, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments)
_KNOWN_LAUNCHER = (3, 6) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) <= (3, 9)


class Kernel:
    """A kernel with its compile-time arguments, launched on the GPU of its tensors.

    Triton's `kernel[grid](...)` repeats the same work on every call, which takes longer than the kernel of a
    small tensor. This class asks Triton for the compiled kernel once per GPU and alignment of the pointers,
    since Triton specialises these kernels by nothing else. Later calls go to the compiled kernel directly.

    If Triton has to see every launch (hooks, debug modes, the interpreter), every call goes through Triton.
    So it does if the launcher of this version of Triton isn't known.
    """

    def __init__(self, function: Any, constants: dict[str, Any], in_graphs: "Kernel | None" = None) -> None:
        self._function = function
        self._in_graphs = in_graphs
        self._constants = constants
        # The launcher takes compile-time arguments too, in their places, and skips them.
        self._rest = tuple(constants[name] for name in function.arg_names if name in constants)
        # By GPU, and by GPU and pointers where some are misaligned.
        self._compiled: dict[Any, _Compiled] = {}

    def __call__(
        self, grid: Grid, tensors: tuple[Tensor | None, ...], scalars: tuple[float | int | Tensor, ...]
    ) -> bool:
        """Launch on the GPU of the first tensor; False if a graph captures and nothing may be loaded."""
        first: Any = tensors[0]
        device = first.get_device()
        key = _key(device, tensors)
        compiled = self._compiled.get(key)
        if compiled is None or _watched():
            with torch.cuda.device_of(first):
                if _KNOWN_LAUNCHER and capturing(first):
                    return False
                self._launch_by_triton(device, key, grid, tensors, scalars)
            return True
        if _torch.current_device() != device:  # type: ignore[misc]
            with torch.cuda.device(device):
                return self(grid, tensors, scalars)
        # As in JITFunction.run. The metadata and the two hooks are for a profiler, and there is none.
        compiled.run(
            *grid,
            _torch.current_stream(device),  # type: ignore[misc]
            compiled.function,
            compiled.metadata,
            None,
            None,
            None,
            *tensors,
            *scalars,
            *self._rest,
        )
        return True

    def _launch_by_triton(
        self, device: int, key: Any, grid: Grid, tensors: tuple[Any, ...], scalars: tuple[Any, ...]
    ) -> None:
        compiled = self._function[grid](*tensors, *scalars, **self._constants)
        if not _KNOWN_LAUNCHER or not hasattr(compiled, "packed_metadata"):
            return
        self._compiled[key] = _Compiled(compiled)
        for kernel in (self, self._in_graphs):
            if kernel is not None and device not in kernel._compiled:
                kernel._load(device, grid, tensors, scalars)

    def _load(self, device: int, grid: Grid, tensors: tuple[Any, ...], scalars: tuple[Any, ...]) -> None:
        """Compile and load for aligned pointers. Pointers after the scalars are to int64."""
        pointers = [tensor if tensor is None else tensor.dtype for tensor in tensors]
        rest = [torch.int64] * (len(self._function.arg_names) - len((*tensors, *scalars, *self._rest)))
        loaded = self._function.warmup(*pointers, *scalars, *rest, grid=grid, **self._constants)
        self._compiled[device] = _Compiled(loaded)

    def loaded(self, device: int) -> bool:
        """Whether a launch on that GPU with aligned pointers needs nothing loaded."""
        return device in self._compiled and not _watched()


class _Compiled:
    """The parts of a compiled and loaded kernel that a launch needs."""

    __slots__ = ("function", "metadata", "owner", "run")

    def __init__(self, compiled: Any) -> None:
        self.run = compiled.run  # reading this property loads the other attributes
        self.function = compiled.function
        self.metadata = compiled.packed_metadata
        self.owner = compiled  # kept alive, since its end unloads the function


def _key(device: int, tensors: tuple[Tensor | None, ...]) -> Any:
    """Return the GPU, and any misaligned pointers, since Triton specialises by multiples of 16."""
    addresses = 0
    for tensor in tensors:
        if tensor is not None:
            addresses |= tensor.data_ptr()
    if not addresses & 15:
        return device
    return device, *(tensor is not None and tensor.data_ptr() % 16 != 0 for tensor in tensors)


def _watched(runtime: Any = knobs.runtime, compilation: Any = knobs.compilation) -> bool:
    """Whether Triton has been asked to see or change launches."""
    return bool(
        runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or runtime.debug
        or compilation.instrumentation_mode
    )


def capturing(tensor: Tensor) -> bool:
    """Whether the current stream is being captured in a CUDA graph; the tensor's GPU is the current one."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy of its layout if its pointer is no multiple of 16."""
    return tensor.clone(memory_format=torch.preserve_format) if tensor.data_ptr() % 16 else tensor
