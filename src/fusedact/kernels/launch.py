"""From tensors to kernel launches: shapes of grids and packed bits, and nothing of autograd.

Kernels launch on the tensor's own GPU; a CPU tensor is for Triton's interpreter.
"""

import functools
import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from .. import random
from ..activations import Activation, Saved
from ..random import Draw, Plan
from . import activations
from .dropout import COLUMNS, TILE, WORD, backward_kernel, forward_kernel

_TRITON_DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# Programs along a grid's second and third axis are limited to 65535 each.
_AXIS = 32768
_int32 = torch.int32  # looked up once: it is asked at every call
WARPS = COLUMNS // (64 if torch.version.hip else 32)  # a thread for each column
# compiled.run(*grid, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments)
_KNOWN_LAUNCHER = (3, 6) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) <= (3, 9)


# As `random.current_device`: the interpreter has no launcher.
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def planes(activation: Activation) -> int:
    """Bits per element that forward packs."""
    return 2 if activation.saved is Saved.FLAG else 1


def grid(n: int, plan: Plan) -> tuple[int, int, int]:
    """Programs along each axis; of eager, the first covers the threads of its grid, the others its loop."""
    if plan.rng == "fast":
        return triton.cdiv(n, TILE), 1, 1
    threads = 256 * plan.blocks
    iterations = triton.cdiv(n, threads * plan.lanes)
    programs = triton.cdiv(min(threads, triton.cdiv(n, plan.vec)), TILE // plan.lanes)
    return programs, min(iterations, _AXIS), triton.cdiv(iterations, _AXIS)


def unpack(bits: Tensor, n: int, plan: Plan) -> Tensor:
    """The packed bits as bool [planes, n], in memory order (slow: for tests and double backward)."""
    programs, first, second = grid(n, plan)
    places = torch.arange(WORD - 1, -1, -1, dtype=torch.int32, device=bits.device)
    flat = (bits.unsqueeze(-1) >> places) & 1
    # [iteration, program, plane, column, group, lane] -> [plane, iteration, idx, lane]
    flat = flat.view(first * second, programs, -1, COLUMNS, WORD // plan.lanes, plan.lanes)
    flat = flat.permute(2, 0, 1, 4, 3, 5).reshape(flat.shape[2], first * second, -1, plan.lanes)
    if plan.rng == "eager":
        flat = flat[:, :, : 256 * plan.blocks]
        if plan.vec == 1:
            flat = flat.transpose(2, 3)  # lanes are a whole grid apart
    return flat.reshape(flat.shape[0], -1)[:, :n].bool()


def in_tiles(n: int, plan: Plan) -> bool:
    """Whether the packed bits' program t holds the elements from t * TILE on, in memory order."""
    span = 256 * plan.blocks * plan.vec  # of one iteration
    return plan.in_memory_order and (plan.rng == "fast" or n <= span or span % TILE == 0)


def specialisation(activation: Activation, direction: str, dtype: torch.dtype, plan: Plan) -> dict[str, Any]:
    """The compile-time arguments of a kernel, and its options.

    `direction` is "forward", "backward" or, for an operation in place, "backward_from_output".
    Forward's numbers come from the host; without `seed_ptr` and `offset_ptr`, from the device.
    """
    saved = activation.saved
    arithmetic = tl.float64 if dtype is torch.float64 else tl.float32
    own = (
        {"seed_ptr": None, "offset_ptr": None, "MERGES_FLAG": saved is Saved.ALIVE}
        if direction == "forward"
        else {"SAVES_INPUT": saved is Saved.INPUT}
    )
    return {
        **own,
        direction.split("_")[0].upper(): getattr(activations, f"{activation.name}_{direction}"),
        "SAVES_FLAG": saved is Saved.FLAG,
        "ARITHMETIC": arithmetic,
        "STORED": _TRITON_DTYPES[dtype] if plan.rng == "eager" else arithmetic,
        "FAST": plan.rng == "fast",
        "VEC": plan.vec,
        "LANES": plan.lanes,
        "COLUMNS": COLUMNS,
        # What the source says is what runs, as in the interpreter: it asks for each fused multiplication.
        "enable_fp_fusion": False,
        "num_warps": WARPS,
    }


class NotLoadedError(RuntimeError):
    """A CUDA graph is being captured, while which nothing can be loaded."""


class Kernel:
    """A kernel with its compile-time arguments, launched on the GPU of its tensors.

    `kernel[grid](...)` works out on every call what can't change between calls, which takes longer than
    the kernel of a small tensor. This asks Triton once per GPU and alignment of the pointers (of what
    is left, Triton specialises nothing) and from then on calls what Triton compiled. Where Triton is
    to see every launch (hooks, debug modes, the interpreter), or is of a version whose launcher may
    differ, it does.

    Nothing can be loaded while a CUDA graph is captured. So the first launch also loads the kernel of aligned
    pointers, and that of `captured`, which graphs launch in this one's place. If the kernel of some other
    alignment is missing in a capture, aligned copies stand in for the first `reads` pointers, which are only
    read.
    """

    def __init__(
        self, function: Any, constants: dict[str, Any], reads: int, captured: "Kernel | None" = None
    ) -> None:
        self._function = function
        self._reads = reads
        self._captured = captured
        self._constants = constants
        # The launcher takes compile-time arguments too, in their places, and skips them.
        self._rest = tuple(constants[name] for name in function.arg_names if name in constants)
        # By GPU, by GPU and pointers where some are misaligned.
        self._compiled: dict[Any, _Launcher] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        first: Tensor,
        others: tuple[Tensor | None, ...],
        scalars: tuple[float | int | Tensor, ...],
    ) -> None:
        """Launch on the GPU of `first`, the kernel's first pointer, with the others and its scalars.

        Raises:
            NotLoadedError: it would have to be loaded, which can't be now.
        """
        device = first.get_device()
        key: Any = device
        addresses = first.data_ptr()
        for tensor in others:
            if tensor is not None:
                addresses |= tensor.data_ptr()
        if addresses & 15:
            key = (device, *_misaligned(first, *others))
        compiled = self._compiled.get(key)
        if compiled is None and _KNOWN_LAUNCHER and not _can_load(first):
            self._launch_aligned(grid, (first, *others), scalars)
            return
        if compiled is None or _watched():
            with torch.cuda.device_of(first):
                compiled = self._function[grid](first, *others, *scalars, **self._constants)
            if _KNOWN_LAUNCHER and hasattr(compiled, "packed_metadata"):
                self._compiled[key] = _launcher(compiled)
                for kernel in (self, self._captured):
                    if kernel is not None and device not in kernel._compiled:
                        kernel._load(device, grid, (first, *others), scalars)
            return
        if random.current_device() != device:
            with torch.cuda.device(device):
                self(grid, first, others, scalars)
            return
        # As JITFunction.run has it: the metadata and the two hooks are a profiler's, and there is none.
        compiled.run(
            *grid,
            _current_stream(device),
            compiled.function,
            compiled.metadata,
            None,
            None,
            None,
            first,
            *others,
            *scalars,
            *self._rest,
        )

    def _launch_aligned(
        self, grid: tuple[int, int, int], tensors: tuple[Any, ...], scalars: tuple[Any, ...]
    ) -> None:
        """Launch with copies of what is misaligned and only read."""
        read = tensors[: self._reads]
        if not any(_misaligned(*read)):
            raise NotLoadedError("a kernel has to be launched once before a CUDA graph with it is captured")
        first, *others = (_aligned(tensor) for tensor in read)
        self(grid, first, (*others, *tensors[self._reads :]), scalars)

    def _load(
        self, device: int, grid: tuple[int, int, int], tensors: tuple[Any, ...], scalars: tuple[Any, ...]
    ) -> None:
        """Compile and load for aligned pointers, but don't launch.

        The pointers after the scalars are to int64.
        """
        pointers = [tensor if tensor is None else tensor.dtype for tensor in tensors]
        rest = [torch.int64] * (len(self._function.arg_names) - len((*tensors, *scalars, *self._rest)))
        with torch.cuda.device(device):
            compiled = self._function.warmup(*pointers, *scalars, *rest, grid=grid, **self._constants)
            self._compiled[device] = _launcher(compiled)

    def ready(self, device: int) -> bool:
        """Whether a launch on that GPU needs nothing loaded, what is written being aligned."""
        return device in self._compiled and not _watched()


class _Launcher(NamedTuple):
    """What a launch needs of a compiled kernel, and the kernel: its end would unload the function."""

    run: Any
    function: Any
    metadata: Any
    compiled: Any


def _launcher(compiled: Any) -> _Launcher:
    run = compiled.run  # a property, which loads the rest
    return _Launcher(run, compiled.function, compiled.packed_metadata, compiled)


def _can_load(tensor: Tensor) -> bool:
    return not (tensor.is_cuda and random.is_capturing(tensor))


def _aligned(tensor: Any) -> Any:
    """`tensor`, or where it is misaligned a copy in the same order."""
    return tensor.clone() if tensor is not None and tensor.data_ptr() % 16 else tensor


def _misaligned(*pointers: Tensor | None) -> tuple[bool, ...]:
    """Which pointers are no multiples of 16: that is what Triton specialises them by."""
    return tuple(tensor is not None and tensor.data_ptr() % 16 != 0 for tensor in pointers)


def _watched(runtime: Any = knobs.runtime, compilation: Any = knobs.compilation) -> bool:
    """Whether Triton has been asked to see or change launches."""
    return bool(
        runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or runtime.debug
        or compilation.instrumentation_mode
    )


class Prepared(NamedTuple):
    """All that the launches for one layer and size need and no call changes."""

    activation: Activation
    parameter: float
    p: float
    plan: Plan
    saves_input: bool
    saves_output: bool
    has_signs: bool  # see `forward_with_signs`
    grid: tuple[int, int, int]
    # Of the packed bits, int32 [programs, planes, COLUMNS] made flat, and of the signs that are stored
    # besides, [programs, COLUMNS]; 0 where there are none. Numbers alone: a tensor that is kept from one
    # call to the next could stand in the memory of a CUDA graph that happened to capture the first.
    words: int
    sign_words: int
    walk: tuple[int, int]  # n, blocks
    forward: Kernel
    captured: Kernel  # forward for numbers on the device
    forward_scalars: tuple[int, ...]  # threshold, scale, parameter, their product
    backward: Kernel
    backward_scalars: tuple[int, ...]  # n, blocks, scale, parameter, their product


def prepare(
    activation: Activation,
    dtype: torch.dtype,
    n: int,
    parameter: float,
    p: float,
    plan: Plan,
    from_output: bool = False,
    watched: bool = False,
) -> Prepared | None:
    """What the launches need; None where float32 can't hold the parameter or its scaled value.

    With `from_output` backward reads forward's output in place of its input. If the call is `watched` and
    the bits are `in_tiles`, forward stores its inputs' signs too.
    """
    double = dtype is torch.float64
    scales = random.scales(p, double)
    try:
        forward, backward = (_scalars(scale, parameter, double) for scale in scales)
    except OverflowError:
        return None
    programs, iterations, rounds = shape = grid(n, plan)
    has_signs = watched and in_tiles(n, plan)
    stores_signs = has_signs and activation.saved is not Saved.FLAG
    words = programs * iterations * rounds * COLUMNS
    kind = Plan(plan.rng, plan.vec, plan.lanes, 0, 0)  # what the kernel is compiled for
    return Prepared(
        activation,
        parameter,
        p,
        plan,
        activation.saved is Saved.INPUT and not from_output,
        from_output,
        has_signs,
        shape,
        words * planes(activation),
        words if stores_signs else 0,
        (n, plan.blocks),
        _kernel(activation, "forward", dtype, kind, False, stores_signs),
        _kernel(activation, "forward", dtype, kind, True, stores_signs),
        (random.keep_threshold(p, double, plan.rng), *forward),
        _kernel(activation, "backward_from_output" if from_output else "backward", dtype, kind),
        (n, plan.blocks, *backward),
    )


@functools.cache
def _kernel(
    activation: Activation,
    direction: str,
    dtype: torch.dtype,
    plan: Plan,
    captured: bool = False,
    stores_signs: bool = False,  # Triton compiles another kernel
) -> Kernel:
    constants = specialisation(activation, direction, dtype, plan)
    if direction != "forward":
        return Kernel(backward_kernel, constants, 3)
    if captured:
        del constants["seed_ptr"], constants["offset_ptr"]
        return Kernel(forward_kernel, constants, 1)
    return Kernel(
        forward_kernel, constants, 1, _kernel(activation, direction, dtype, plan, True, stores_signs)
    )


def _scalars(scale: float, parameter: float, double: bool) -> tuple[int, ...]:
    """Scale, parameter and their product as kernel arguments: integers of the same bits."""
    number, integer = ("<3d", "<3q") if double else ("<3f", "<3i")
    return struct.unpack(integer, struct.pack(number, scale, parameter, parameter * scale))


def forward(
    prepared: Prepared,
    x: Tensor,
    y: Tensor,
    draw: Draw,
    bits: Tensor | None = None,
    signs: Tensor | None = None,
) -> Tensor:
    """Write y = dropout(act(x), p), and return the packed bits; `x` and `y` dense in the same layout.

    The bits stand at the start of `bits` if it is given, which may be larger than they need.
    """
    if bits is None:
        bits = x.new_empty(prepared.words, dtype=_int32)
    seed, offset, device = draw
    call = offset // 4
    numbers = (seed & 0xFFFFFFFF, seed >> 32, call & 0xFFFFFFFF, call >> 32)
    kernel = prepared.captured if device else prepared.forward
    kernel(prepared.grid, x, (y, bits, signs), (*prepared.walk, *numbers, *prepared.forward_scalars, *device))
    return bits


def forward_with_signs(prepared: Prepared, x: Tensor, y: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """`forward`, and packed bits of the same order whose last plane says which inputs are positive.

    Where that is what backward needs too, they are the same.
    """
    signs = x.new_empty(prepared.sign_words, dtype=_int32) if prepared.sign_words else None
    bits = forward(prepared, x, y, draw, signs=signs)
    return bits, bits if signs is None else signs


def loaded(prepared: Prepared, device: int, backward: bool) -> bool:
    """Whether a graph that is being captured on that GPU can launch forward, and if asked `backward`."""
    return prepared.captured.ready(device) and (not backward or prepared.backward.ready(device))


def backward(prepared: Prepared, dy: Tensor, x: Tensor | None, bits: Tensor, dx: Tensor) -> None:
    """Write dx from dy, the packed bits and what was saved of x or y; all dense in the same layout.

    Raises:
        NotLoadedError: a graph is being captured, and no backward has run before.
    """
    prepared.backward(prepared.grid, dy, (x, bits, dx), prepared.backward_scalars)
