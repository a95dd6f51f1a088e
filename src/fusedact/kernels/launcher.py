"""Launches of Triton kernels with little host time, on the tensors' GPU, and in a graph's capture too."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from .. import _torch

Grid = tuple[int, int, int]
# Launches a loaded kernel with its grid and its arguments, tensors as addresses, on the current GPU. It
# returns False if Triton has been asked to see or change launches.
Launch = Callable[[Grid, tuple[Any, ...]], bool]

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
        self._loaded: dict[Any, Launch] = {}

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
        launch = self._loaded.get(key)
        with torch.cuda.device_of(tensors[0]):
            if launch is not None and launch(grid, (*addresses, *scalars)):
                return True
            if _KNOWN_LAUNCHER and capturing(tensors[0]):
                return False
            self._launch_by_triton(device, key, grid, tensors, scalars)
            return True

    def on(self, device: int) -> Launch | None:
        """Return the launch for pointers that are multiples of 16 on that GPU; None if it isn't loaded."""
        return self._loaded.get(device)

    def _launch_by_triton(
        self, device: int, key: Any, grid: Grid, tensors: tuple[Any, ...], scalars: tuple[Any, ...]
    ) -> None:
        arguments = *tensors, *scalars
        assert len(arguments) == sum(self._given)  # which Triton's C function doesn't check
        compiled = self._function[grid](*self._with_constants(arguments), **self._options)
        # Debugging and instrumentation change the code, so it isn't kept.
        if not _KNOWN_LAUNCHER or _changed() or not hasattr(compiled, "packed_metadata"):
            return
        self._loaded[key] = self._ready(compiled, device)
        for kernel in (self, self._in_graphs):
            if kernel is not None and device not in kernel._loaded:
                kernel._load(device, grid, tensors, scalars)

    def _load(self, device: int, grid: Grid, tensors: tuple[Any, ...], scalars: tuple[Any, ...]) -> None:
        """Compile and load for aligned pointers. Pointers after the scalars are to int64."""
        pointers = [torch.int64] * (sum(self._given) - len(tensors) - len(scalars))
        given = (*(tensor.dtype for tensor in tensors), *scalars, *pointers)
        compiled = self._function.warmup(*self._with_constants(given), grid=grid, **self._options)
        self._loaded[device] = self._ready(compiled, device)

    def _with_constants(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return all arguments of the function in its order, the given and the compile-time ones."""
        arguments: tuple[Any, ...] = self._in_order(given + self._fixed)
        return arguments

    def _ready(self, compiled: Any, device: int) -> Launch:
        """Load a kernel that Triton compiled, and return its launch on the current GPU, of the given number.

        A launch's arguments are as in `JITFunction.run`. The Nones stand for launch metadata and two hooks,
        which are for a profiler, and for two scratch buffers, which these kernels don't need.
        """
        run = compiled.run  # reading this property loads the kernel
        function, metadata = compiled.function, compiled.packed_metadata
        start: Callable[..., Any]
        rest: tuple[Any, ...]
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
            start = run.launch
        else:
            rest = function, metadata, None, None, None

            def start(*parts: Any) -> None:
                run(*parts[:-1], *self._with_constants(parts[-1]))

        runtime, compilation, stream = knobs.runtime, knobs.compilation, _torch.current_stream

        def launch(grid: Grid, arguments: tuple[Any, ...]) -> bool:
            if (  # `_watched()`, which would take longer
                runtime.launch_enter_hook.calls
                or runtime.launch_exit_hook.calls
                or runtime.debug
                or compilation.instrumentation_mode
            ):
                return False
            start(*grid, stream(device), *rest, arguments)  # type: ignore[misc]
            return True

        launch.kernel = compiled  # type: ignore[attr-defined]  # kept, since its end unloads the function
        return launch

    def loaded(self, device: int) -> bool:
        """Whether a launch on that GPU with aligned pointers needs nothing loaded."""
        return device in self._loaded and not _watched()


def _changed() -> bool:
    """Whether Triton has been asked to compile other code than usual."""
    return bool(knobs.runtime.debug or knobs.compilation.instrumentation_mode)


def _watched() -> bool:
    """Whether Triton has been asked to see or change launches."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return _changed() or any(hook.calls for hook in hooks)


def capturing(tensor: Tensor) -> bool:
    """Whether the current stream is being captured in a CUDA graph; the tensor's GPU is the current one."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy of its layout if its pointer is no multiple of 16."""
    return tensor.clone(memory_format=torch.preserve_format) if tensor.data_ptr() % 16 else tensor
