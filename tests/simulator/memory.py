"""CPU tensors over a simulated GPU's memory, work in a stream's order, and a GPU generator's numbers."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import gpu

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_captured = []  # callbacks of graphs, which may be replayed as long as the process lives


def alias(value: Any) -> Any:
    """Return a CPU tensor over a CUDA tensor's memory, which it doesn't own; other values unchanged."""
    if not isinstance(value, Tensor) or not value.is_cuda:
        return value
    if value.numel() == 0:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    extent = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    buffer = (ctypes.c_uint8 * (extent * value.itemsize)).from_address(value.data_ptr())
    storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    result = torch.empty(0, dtype=value.dtype).set_(storage, 0, value.shape, value.stride())
    return torch._neg_view(result) if value.is_neg() else result


def upload(value: Any, device: torch.device) -> Any:
    """Return a CUDA tensor with a CPU tensor's values and strides; other values unchanged."""
    if not isinstance(value, Tensor):
        return value
    result = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    alias(result).copy_(value)
    return result


def in_turn(name: str, device: torch.device, work: Callable[[], None]) -> None:
    """Run `work` in the order of the device's current stream, or if it captures, at every replay."""
    with torch.cuda.device(device), torch.no_grad():
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        if torch.cuda.is_current_stream_capturing():

            def replay(_: None) -> None:
                try:
                    with torch.no_grad():
                        work()
                except BaseException as error:  # nothing passes through the driver
                    gpu.library.sim_violation(f"{name} in a replay: {error!r}".encode())

            _captured.append(_CALLBACK(replay))
            code = gpu.library.cuLaunchHostFunc(stream, _captured[-1], None)
        else:
            code = gpu.library.sim_operator(stream, name.encode())
            work()
        assert code == 0, f"{name}: CUDA error {code}"


class _PhiloxCudaState(ctypes.Structure):
    """ATen's struct in a capture: seed and offset are device addresses, which each replay fills."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("seed", "offset", "within")),
        ("captured", ctypes.c_bool),
    )


@functools.cache
def _philox_cuda_state() -> Any:
    """Return the function with which PyTorch's own kernels reserve their numbers."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"))
    found = library._ZN2at17CUDAGeneratorImpl17philox_cuda_stateEm
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_uint64], _PhiloxCudaState
    return found


def reserve_numbers(generator: torch.Generator, increment: int) -> Callable[[], tuple[int, int]]:
    """Advance the generator; return a function that gives seed and offset, in a replay the replay's."""
    if torch.cuda.is_current_stream_capturing():
        # A Python generator is an object's header and the address of its implementation.
        implementation = ctypes.c_void_p.from_address(id(generator) + object.__basicsize__)
        state = _philox_cuda_state()(implementation, increment)
        assert state.captured
        at = ctypes.c_uint64.from_address
        return lambda: (at(state.seed).value, at(state.offset).value + state.within)
    offset = generator.get_offset()
    generator.set_offset(offset + increment)
    seed = generator.initial_seed()
    return lambda: (seed % 2**64, offset)
