"""Launches of Triton kernels with little host time, on the tensors' GPU, and in a graph's capture too."""

import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

from .. import _torch

Grid = tuple[int, int, int]

_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
# compiled.run(*grid, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments)
_KNOWN_LAUNCHER = (3, 6) <= _VERSION <= (3, 9)
# The C function that `compiled.run` calls on NVIDIA's GPUs, with the arguments that `_ready` gives it.
_KNOWN_FUNCTION = (3, 7) <= _VERSION <= (3, 8)


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
        names = function.arg_names
        self._given = [name not in constants for name in names]  # which arguments are given at a launch
        self._fixed = tuple(constants[name] for name in names if name in constants)
        self._options = {name: value for name, value in constants.items() if name not in names}
        joined = sorted(names, key=lambda name: name in constants)  # the given ones, then the fixed ones
        self._in_order = operator.itemgetter(*map(joined.index, names))
        # By GPU, and by GPU and pointers where some are misaligned.
        self._compiled: dict[Any, _Compiled] = {}

    def __call__(
        self, grid: Grid, tensors: tuple[Tensor, ...], scalars: tuple[float | int | Tensor, ...]
    ) -> bool:
        """Launch on the GPU of the first tensor; False if a graph captures and nothing may be loaded.

        The tensors and scalars are the kernel's arguments without the compile-time ones, in their order. A
        tensor among the scalars is loaded as a whole, so its alignment doesn't matter.
        """
        device = tensors[0].get_device()
        addresses = [tensor.data_ptr() for tensor in tensors]
        whole = [address % 16 == 0 for address in addresses]  # Triton specialises by multiples of 16
        key = device if all(whole) else (device, *whole)
        arguments = *addresses, *scalars
        if self.launch_loaded(grid, key, device, arguments):
            return True
        with torch.cuda.device_of(tensors[0]):
            if self.launch_loaded(grid, key, device, arguments):
                return True
            if _KNOWN_LAUNCHER and capturing(tensors[0]):
                return False
            self._launch_by_triton(device, key, grid, tensors, scalars)
            return True

    def launch_loaded(self, grid: Grid, key: Any, device: int, arguments: tuple[Any, ...]) -> bool:
        """Launch if the kernel is loaded on the current GPU, and Triton needn't see it; else return False.

        Args:
            grid: the grid.
            key: the kernel's key in `_compiled`: `device`, if all addresses are multiples of 16.
            device: the number of the GPU.
            arguments: the tensors' addresses, which Triton takes in place of tensors, and the scalars.
        """
        compiled = self._compiled.get(key)
        if compiled is None or _torch.current_device() != device or _watched():  # type: ignore[misc]
            return False
        _, launch, rest = compiled
        launch(*grid, _torch.current_stream(device), *rest, arguments)  # type: ignore[misc]
        return True

    def _launch_by_triton(
        self, device: int, key: Any, grid: Grid, tensors: tuple[Any, ...], scalars: tuple[Any, ...]
    ) -> None:
        arguments = *tensors, *scalars
        assert len(arguments) == sum(self._given)  # which Triton's C function doesn't check
        compiled = self._function[grid](*self._with_constants(arguments), **self._options)
        # Debugging and instrumentation change the code, so it isn't kept.
        if not _KNOWN_LAUNCHER or _changed() or not hasattr(compiled, "packed_metadata"):
            return
        self._compiled[key] = self._ready(compiled)
        for kernel in (self, self._in_graphs):
            if kernel is not None and device not in kernel._compiled:
                kernel._load(device, grid, tensors, scalars)

    def _load(self, device: int, grid: Grid, tensors: tuple[Any, ...], scalars: tuple[Any, ...]) -> None:
        """Compile and load for aligned pointers. Pointers after the scalars are to int64."""
        pointers = [torch.int64] * (sum(self._given) - len(tensors) - len(scalars))
        given = (*(tensor.dtype for tensor in tensors), *scalars, *pointers)
        compiled = self._function.warmup(*self._with_constants(given), grid=grid, **self._options)
        self._compiled[device] = self._ready(compiled)

    def _with_constants(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return all arguments of the function in its order, the given and the compile-time ones."""
        arguments: tuple[Any, ...] = self._in_order(given + self._fixed)
        return arguments

    def _ready(self, compiled: Any) -> "_Compiled":
        """Load a kernel that Triton compiled, and keep what its launches need.

        A launch's arguments are as in `JITFunction.run`. The Nones stand for launch metadata and two hooks,
        which are for a profiler, and for two scratch buffers, which these kernels don't need.
        """
        run = compiled.run  # reading this property loads the kernel
        function, metadata = compiled.function, compiled.packed_metadata
        if (
            _KNOWN_FUNCTION
            and type(run).__name__ == "CudaLauncher"
            and not run.global_scratch_size
            and not run.profile_scratch_size
        ):
            # As in CudaLauncher.__call__, but without the compile-time arguments, which are skipped there.
            modes = run.launch_cooperative_grid, run.launch_pdl
            kinds = [*itertools.compress(run.arg_annotations, self._given)]
            rest = function, *modes, metadata, None, None, None, None, None, kinds, run.kernel_signature
            return _Compiled(compiled, run.launch, rest)

        def launch(*parts: Any) -> None:
            run(*parts[:-1], *self._with_constants(parts[-1]))

        return _Compiled(compiled, launch, (function, metadata, None, None, None))

    def loaded(self, device: int) -> bool:
        """Whether a launch on that GPU with aligned pointers needs nothing loaded."""
        return device in self._compiled and not _watched()


class _Compiled(NamedTuple):
    """A compiled and loaded kernel. A launch is `launch(*grid, stream, *rest, arguments)`.

    Attributes:
        kernel: kept, since its end unloads the function.
        launch: Triton's C function, or a wrapper around Triton's launcher, which takes other arguments.
        rest: its arguments that are the same at each launch.
    """

    kernel: Any
    launch: Callable[..., None]
    rest: tuple[Any, ...]


def _watched(runtime: Any = knobs.runtime) -> bool:
    """Whether Triton has been asked to see or change launches."""
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls or _changed())


def _changed(runtime: Any = knobs.runtime, compilation: Any = knobs.compilation) -> bool:
    """Whether Triton has been asked to compile other code than usual."""
    return bool(runtime.debug or compilation.instrumentation_mode)


def capturing(tensor: Tensor) -> bool:
    """Whether the current stream is being captured in a CUDA graph; the tensor's GPU is the current one."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy of its layout if its pointer is no multiple of 16."""
    return tensor.clone(memory_format=torch.preserve_format) if tensor.data_ptr() % 16 else tensor
