"""PyTorch's CUDA operators, run on CPU tensors over the same memory, and the translation of Triton's kernels.

PyTorch's kernels are machine code, which the simulator can't execute. So `install` registers another CUDA
kernel for each ATen operator that has one. It calls the operator's CPU kernel, in the order of the current
stream.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from . import gpu
from .dropout import native_dropout, native_dropout_backward
from .memory import alias, in_turn, reserve_numbers, upload
from .ptx import Module

# Metadata, allocations, and copies that are the driver's: PyTorch's own functions do.
_REAL = {
    "_efficientzerotensor", "_has_same_storage_numel", "_lazy_clone", "_local_scalar_dense",
    "_nested_view_from_buffer", "_pin_memory", "_reshape_alias", "as_strided", "empty.memory_format",
    "empty_strided", "is_pinned", "is_set_to", "record_stream", "resize_", "set_", "set_.source_Storage",
    "set_.source_Storage_storage_offset", "set_.source_Tensor", "unfold", "view", "view_as_complex",
    "view_as_real",
}  # fmt: skip
# Operators of all devices, below which PyTorch launches a kernel.
_COMPOSITE = ("ldexp.Tensor", "ldexp.out", "ldexp_")
_SIXTH = torch.tensor(1 / 6).item()  # as float32 has it
# Where a GPU computes otherwise than a CPU, which divides by 6 and doesn't round a threshold to the dtype.
_AS_GPUS_DO: dict[str, Callable[..., Tensor]] = {
    "hardsigmoid": lambda x: ((_wide(x) + 3).clamp(0, 6) * _SIXTH).to(x.dtype),
    "hardswish": lambda x: (_wide(x) * (_wide(x) + 3).clamp(0, 6) * _SIXTH).to(x.dtype),
    "threshold": lambda x, threshold, value: torch.threshold(x, _rounded(threshold, x), value),
    "threshold_backward": lambda dy, x, threshold: torch.ops.aten.threshold_backward(
        dy, x, _rounded(threshold, x)
    ),
}
_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _rounded(number: float, x: Tensor) -> float:
    return torch.tensor(number, dtype=x.dtype).item()


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, item) for item in value)
    return function(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _device(op: OpOverload, tensors: list[Tensor], asked: Any) -> torch.device:
    """Return the operator's device; all tensors but 0-dim numbers must be on it."""
    if not tensors:
        device = torch.device(asked or "cuda")
        return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
    device = tensors[0].device
    other = next((t.device for t in tensors if t.device != device and t.dim()), None)
    if other is not None:
        raise RuntimeError(
            f"{op}: expected all tensors on one device, but got some on {device} and on {other}"
        )
    return device


def _tensor_of(value: Any) -> Any:
    """Return a tensor on the CPU; a number that PyTorch wrapped in a tensor is unwrapped."""
    dtype = _NUMBERS.get(type(value))
    return alias(value) if dtype is None else torch.scalar_tensor(value, dtype=dtype)


class _Emulated:
    """An operator's CUDA kernel that calls its CPU kernel, or what `_AS_GPUS_DO` has in its place."""

    def __init__(self, op: OpOverload) -> None:
        arguments = op._schema.arguments
        self._op = op
        self._compute = _AS_GPUS_DO.get(str(op).removeprefix("aten.").removesuffix(".default"), op)
        self._name = op._schema.name.removeprefix("aten::")
        self._outputs = [argument.name for argument in arguments if argument.is_out]
        self._takes_tensor = [str(argument.type) == "Tensor" for argument in arguments]
        self._random = any("Generator" in str(argument.type) for argument in arguments)
        # For each result: which argument it is (a place, or a name), or None if it is new.
        written = {
            group: argument.name if argument.kwarg_only else place
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for group in argument.alias_info.before_set
        }
        self._writes = bool(written)
        self._returns = [
            None if r.alias_info is None else written[next(iter(r.alias_info.before_set))]
            for r in op._schema.returns
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        used = [t for t in _tensors((args, tuple(kwargs.values()))) if t.is_cuda]
        device = _device(self._op, used, kwargs.get("device"))
        with torch.cuda.device(device):
            return self._run(args, kwargs, device, used[0].numel() if used else 1)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device, n: int) -> Any:
        low = [
            _tensor_of(value) if takes_tensor else _map(alias, value)
            for value, takes_tensor in zip(args, self._takes_tensor, strict=False)
        ]
        named = {name: _map(alias, value) for name, value in kwargs.items()}
        if named.get("device") is not None:
            named["device"] = torch.device("cpu")
        call = self._drawing(low, named, device, n) if self._random else lambda: self._compute(*low, **named)
        for name in self._outputs:
            if isinstance(kwargs.get(name), Tensor) and not kwargs[name].numel():
                call()  # out= gets its shape from a first run
                kwargs[name].resize_(named[name].shape)
                named[name] = alias(kwargs[name])
        if self._writes and None not in self._returns:
            in_turn(self._name, device, call)
            return self._results(args, kwargs, (), device)
        # One that also returns new tensors, a batch normalisation, can't be replayed by a graph.
        assert not (self._writes and torch.cuda.is_current_stream_capturing()), self._name
        return self._pure(call, args, kwargs, device)

    def _pure(self, call: Callable[[], Any], args: Any, kwargs: Any, device: torch.device) -> Any:
        """Return the results of an operator that writes into no argument."""
        computed: list[Any] = []
        capturing = torch.cuda.is_current_stream_capturing()
        if capturing:
            with torch.no_grad():
                computed.append(call())  # for the shapes
        else:
            in_turn(self._name, device, lambda: computed.append(call()))
        back = self._results(args, kwargs, computed[0], device)
        if capturing:
            targets = [alias(t) for t in _tensors(back)]

            def replay() -> None:
                for target, value in zip(targets, _tensors(call()), strict=True):
                    target.copy_(value)

            in_turn(self._name, device, replay)
        return back

    def _drawing(self, low: Any, named: dict[str, Any], device: torch.device, n: int) -> Callable[[], Any]:
        """Draw numbers other than a GPU's, from its generator's state, which advances as on a GPU."""
        numbers = reserve_numbers(
            named.get("generator") or torch.cuda.default_generators[device.index], _increment(device, n)
        )

        def draw() -> Any:
            seed, offset = numbers()
            own = torch.Generator().manual_seed((seed * 1000003 + offset) % 2**63)
            return self._op(*low, **{**named, "generator": own})

        return draw

    def _results(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], computed: Any, device: torch.device
    ) -> Any:
        values = computed if isinstance(computed, tuple) and len(self._returns) != 1 else (computed,)
        back = []
        for i, argument in enumerate(self._returns):
            if argument is None:
                back.append(_map(lambda value: upload(value, device), values[i]))
            else:
                back.append(kwargs[argument] if isinstance(argument, str) else args[argument])
        return back[0] if len(back) == 1 else tuple(back) if back else None


def _increment(device: torch.device, n: int) -> int:
    """Return by how much PyTorch's kernels that draw `n` numbers, four per call, advance the offset."""
    properties = torch.cuda.get_device_properties(device)
    resident = 256 * properties.multi_processor_count * (properties.max_threads_per_multi_processor // 256)
    threads = min(-(-max(n, 1) // 256) * 256, resident)
    return ((max(n, 1) - 1) // (threads * 4) + 1) * 4


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Make the first tensor's device current, as PyTorch's own kernels do."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        device = next(t.device for t in _tensors((args, tuple(kwargs.values()))) if t.is_cuda)
        with torch.cuda.device(device):
            return kernel(*args, **kwargs)

    return guarded


def _copies_memory(to: Tensor, source: Tensor) -> bool:
    """Whether PyTorch copies by the driver, not by a kernel."""
    if to.device != source.device:
        return True
    same = to.dtype == source.dtype and to.shape == source.shape
    if not same or to.is_neg() != source.is_neg() or to.is_conj() != source.is_conj():
        return False
    if to.is_contiguous() and source.is_contiguous():
        return True
    return to.stride() == source.stride() and torch.ops.aten.is_non_overlapping_and_dense(to)


def _copy_with(real: Any) -> Callable[..., Tensor]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def copy_(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if _copies_memory(self, source):
            return real.call_boxed(keys, self, source, non_blocking)
        to, what = alias(self), alias(source)
        in_turn("copy_", self.device, lambda: to.copy_(what))
        return self

    return copy_


def _translate(module: Any, function: Any, name: str, group: dict[str, str], hash: str) -> None:
    """Translate a kernel's PTX to the shared object that the driver looks for, before Triton loads it."""
    paths = {Path(path).suffix: Path(path) for path in group.values()}
    image = paths[".cubin"].read_bytes()
    target = Path(os.environ["SIMULATOR_KERNELS"]) / f"{gpu.library.sim_hash(ctypes.c_char_p(image)):016x}.so"
    if not target.exists():
        Module(paths[".ptx"].read_text()).build(target)


@functools.cache
def install() -> torch.library.Library:
    """Register everything above. Call it once, before the first launch."""
    from triton import knobs

    knobs.runtime.kernel_load_start_hook.add(_translate)
    torch.cuda.init()
    own = {
        "copy_": _copy_with(torch.library.get_kernel("aten::copy_", "CUDA")),
        "native_dropout": _on_its_device(native_dropout),
        "native_dropout_backward": _on_its_device(native_dropout_backward),
    }
    library = torch.library.Library("aten", "IMPL", "CUDA")
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    names = {name.removeprefix("aten::") for name in registered if name.startswith("aten::")}
    for name in sorted(names.union(_COMPOSITE, own) - _REAL):
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, base), overload or "default")
        library.impl(name, own.get(name) or _Emulated(op), allow_override=True)
    return library
