"""The choice of a call's path: kernels, operators that a compiler sees, or PyTorch's own functions."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _torch, kernels, operators
from .activations import Activation, Saves
from .checks import check_flag, check_probability
from .composition import composition
from .masks import generator
from .masks import plan as plans
from .masks.plan import RNGS, device_plan, used_probability
from .watcher import Counter, Watchers

if TYPE_CHECKING:
    from .kernels.configuration import LaunchConfiguration

DTYPES = plans.DTYPES
# Looked up once, since every call uses them and a lookup takes host time.
_compiler = _torch.compiler
_is_compiling, _is_dynamo_compiling = _compiler.is_compiling, _compiler.is_dynamo_compiling
_is_capturing = _torch.is_capturing
_strided = torch.strided
_current_device = _torch.current_device
_tracing_state = _torch.tracing_state
_in_transforms = _torch.in_transforms
_forward_ad = torch.autograd.forward_ad
_is_dense = torch.ops.aten.is_non_overlapping_and_dense.default


def activation_dropout(
    row: Activation,
    input: Tensor,
    values: tuple[float, ...],
    p: float,
    training: bool,
    inplace: bool,
    rng: str,
    watchers: Watchers = (),
) -> Tensor:
    """Return `dropout(act(input), p)`, by the kernels where they can run, else by eager PyTorch.

    Args:
        row: the activation.
        input: any shape and strides.
        values: the numbers that `row.bind` gave.
        p: the dropout probability.
        training: apply dropout.
        inplace: write the result into the input's buffer.
        rng: the mapping from generator to mask, one of `RNGS`.
        watchers: the monitors' parts that count the input.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:  # a call of check_probability takes longer
        p = check_probability(p)
    if type(training) is not bool or type(inplace) is not bool or rng not in RNGS:
        training = check_flag("training", training)
        inplace = check_flag("inplace", inplace)
        check_rng(rng)
    if watchers:
        watchers = tuple(watcher for watcher in watchers if watcher.wants(training))
    if training and 0 < p < 1:
        result = by_kernels(row, input, values, p, inplace, rng, watchers)
        if result is not None:
            return result
    check_input(input)
    if training and 0 < p < 1 and runs_operators(input) and operators.can_compute(row, values, p, rng):
        return operators.activation_dropout(row, input, values, p, inplace, rng, watchers)
    for watcher in watchers:
        watcher(input)
    return composition(row, input, values, p, training, inplace)


def repeated(row: Activation, input: Any, values: tuple[float, ...], p: float, rng: str) -> Tensor | None:
    """Return the kernels' result if earlier usual calls with these arguments had inputs like this, else None.

    It takes less host time than `activation_dropout` and is tried first. A guard compares the inputs in one
    step. Checked apart is what the guard doesn't tell. The caller has checked that the call is a usual one:
    in training, out of place, without watchers.
    """
    kind = type(input)
    if (kind is not Tensor and kind is not Parameter) or type(p) is not float or type(rng) is not str:
        return None
    if _is_dynamo_compiling() or _compiler._is_compiling_flag:
        return None
    n = input.numel()
    if type(n) is not int:  # but symbolic
        return None
    key = row, values, n, p, rng
    shared = _latest.get(key)
    if shared is None or input.is_nested:
        return None
    if not shared.takes(input):
        shared = _shared.get((*key, *_kind(input))) if runs_kernels(input) else None
        if shared is None or not shared.takes(input):
            return None
        _latest[key] = shared
    if input.data_ptr() & 15 or _forward_ad._current_level >= 0:  # PyTorch's mask can depend on the alignment
        return None
    if _current_device() != shared.device:  # type: ignore[misc]
        with torch.cuda.device(shared.device):
            return repeated(row, input, values, p, rng)
    return None if _is_capturing() else shared.run(input)  # type: ignore[misc]


def by_kernels(
    row: Activation,
    input: Tensor,
    values: tuple[float, ...],
    p: float,
    inplace: bool,
    rng: str,
    watchers: Watchers,
) -> Tensor | None:
    """Return the kernels' result; None if they can't run and the caller must compute it with PyTorch.

    The caller has checked `0 < p < 1`, and that all watchers want this call.
    """
    if not runs_kernels(input):
        return None
    device = input.get_device()
    if _current_device() != device:  # type: ignore[misc]
        # The code below uses the current GPU's capture state and stream.
        with torch.cuda.device(device):
            return by_kernels(row, input, values, p, inplace, rng, watchers)
    if row.widens and _torch.is_widened(input):
        wide = input.float()
        result = None if watchers else repeated(row, wide, values, p, rng)
        if result is None:
            result = by_kernels(row, wide, values, p, False, rng, watchers)
        return input.copy_(result) if inplace and result is not None else result
    alignment = 16
    if row.saves is Saves.MASK and rng == "eager" and not input.is_neg():
        # Without an activation, PyTorch's mask depends on the alignment and layout of the caller's memory.
        # PyTorch copies a negated view first.
        address, dense = input.data_ptr(), input.is_contiguous() or _is_dense(input)
        alignment = min(16, address & -address) if dense else 1
    configuration = configured(
        row,
        input.dtype,
        device,
        input.numel(),
        values,
        p,
        rng,
        inplace and row.from_output is not None,
        watchers != (),
        alignment,
    )
    if configuration is None:
        return None
    reserve = generator.reserve
    if _is_capturing():  # type: ignore[misc]
        differentiable = input.requires_grad and torch.is_grad_enabled()
        if not launches().ready_to_capture(configuration, device, differentiable):
            return None
        reserve = generator.reserve_in_capture
    counters = _counters(watchers, input, configuration) if watchers else ()
    reserved = functools.partial(reserve, device, configuration.plan)
    output: Tensor = _autograd().fused(input, configuration, reserved, inplace, counters)
    if not (inplace or watchers or input.data_ptr() & 15):
        _share((row, values, input.numel(), p, rng), input, configuration)
    return output


# What usual calls share, an `autograd.Shared`, by row, parameters, number of elements, p and rng: the latest.
# Then all, by the input's kind too. None stands for a kind with a single call so far, since to prepare takes
# time that inputs which change at every call aren't worth.
_latest: dict[tuple[Any, ...], Any] = {}
_shared: dict[tuple[Any, ...], Any] = {}
_MOST = 4096


def _kind(input: Tensor) -> tuple[Any, ...]:
    """Return what tells inputs apart that have as many elements, and the modes that a guard sees."""
    modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cuda"), _torch.dispatch_modes() > 0
    layout = input.shape, input.stride(), input.dtype, input.get_device()
    return type(input), *layout, input.requires_grad, input.is_inference(), *modes


def _share(key: tuple[Any, ...], input: Tensor, configuration: "LaunchConfiguration") -> None:
    """Prepare at the second call for more of its kind."""
    whole = *key, *_kind(input)
    if whole in _shared:
        shared = _shared[whole] = _autograd().shared(input, configuration)
        if shared is not None:
            _latest[key] = shared
        return
    if len(_shared) >= _MOST:
        _shared.clear()
        _latest.clear()
    _shared[whole] = None


@functools.lru_cache(maxsize=4096)
def configured(
    row: Activation,
    dtype: torch.dtype,
    device: int,
    n: int,
    values: tuple[float, ...],
    p: float,
    rng: str,
    from_output: bool = False,
    watched: bool = False,
    alignment: int = 16,
) -> "LaunchConfiguration | None":
    """Return the launch configuration of a call; None if no kernel supports the call.

    None stands for a parameter beyond float32, a p that rounds to 0, an empty tensor, another dtype, or a
    missing Triton.
    """
    used = used_probability(p, rng)
    if used == 0 or n == 0 or dtype not in DTYPES or not kernels.INSTALLED:
        return None
    from .kernels.configuration import configure

    plan = device_plan(rng, n, dtype.itemsize, device, alignment)
    # Backward reads the output only if it tells the input's sign and doesn't overflow in the dtype.
    from_output = from_output and 0 <= values[0] <= torch.finfo(dtype).max * (1 - used)
    return configure(row, dtype, n, values, used, plan, from_output, watched)


@functools.cache
def _autograd() -> Any:
    from . import autograd

    return autograd


@functools.cache
def launches() -> Any:
    """Return the module that launches the kernels, imported when first needed."""
    from .kernels import launch

    return launch


def _counters(watchers: Watchers, input: Tensor, configuration: "LaunchConfiguration") -> tuple[Counter, ...]:
    """Tell all watchers of the input; return the counters that still have to read the packed bits."""
    plan = configuration.plan if configuration.has_signs else None
    counters = [watcher(input, plan) for watcher in watchers]
    return tuple(counter for counter in counters if counter is not None)


def check_input(input: Tensor) -> None:
    """Raise TypeError unless `input` is a tensor that the operation is defined for."""
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, but got {type(input).__name__}")
    if input.dtype not in DTYPES:
        allowed = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"input must have one of the dtypes {allowed}, but got {input.dtype}")
    if input.layout not in (torch.strided, torch.jagged):
        raise TypeError(f"input must be a dense tensor (layout torch.strided), but got {input.layout}")


def check_rng(rng: str) -> str:
    """Return `rng`; raise ValueError unless it names a mapping from generator to mask."""
    if rng in RNGS:
        return rng
    allowed = " or ".join(repr(name) for name in RNGS)
    raise ValueError(f"rng={rng!r}: it must be {allowed}")


def runs_kernels(input: Tensor) -> bool:
    """Whether the kernels can run on `input`: a plain CUDA tensor, outside of transforms and tracers."""
    # A subclass (DTensor, FakeTensor), a functorch transform, forward-mode differentiation, a tracer
    # and a compiler have to see PyTorch operators, and a kernel launch is none.
    return (
        (type(input) is Tensor or type(input) is Parameter)
        and not _is_compiling()
        and input.is_cuda
        and input.layout is _strided
        and not input.is_nested
        and not _torch.is_functional(input)
        and _tracing_state() is None
        and _forward_ad._current_level < 0
        and not _in_transforms()
    )


def runs_operators(input: Tensor) -> bool:
    """Whether a compiler traces the operators for `input`; the code itself can be traced."""
    # On a CPU a compiler fuses the composition best. functorch and forward mode have no derivatives for the
    # operators: these would silently be 0.
    return (
        torch.compiler.is_compiling()
        and input.device.type == operators.DEVICE
        and (type(input) is Tensor or type(input) is Parameter)
        and not input.is_nested
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and kernels.INSTALLED
    )
