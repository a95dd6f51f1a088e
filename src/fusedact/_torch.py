"""Every private name of PyTorch that the package uses, so that a new release is checked in one place.

If a build of PyTorch lacks a name, the name is None here.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

# None on a build without CUDA.
current_device: Callable[[], int] | None = getattr(torch._C, "_cuda_getDevice", None)
current_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
is_capturing: Callable[[], bool] | None = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)

compiler: Any = torch.compiler  # its `_is_compiling_flag` is true while a graph is traced without Dynamo
tracing_state: Callable[[], Any] = torch._C._get_tracing_state
in_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
is_zero: Callable[[Tensor], bool] = Tensor._is_zerotensor
is_functional: Callable[[Tensor], bool] = torch._is_functional_tensor

function_modes: Callable[[], int] = torch._C._len_torch_function_stack
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

# Hooks on the calls of all modules, by kind; all are empty unless a user registered one.
global_hooks: tuple[Mapping[int, Any], ...] = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
# A module's attributes: its hooks, and the names of its buffers that aren't stored.
HOOKS, PRE_HOOKS, UNSTORED = "_forward_hooks", "_forward_pre_hooks", "_non_persistent_buffers_set"
# The bases of PyTorch's own layers of a kind.
BACKWARD_HOOKS, BACKWARD_PRE_HOOKS, COMPILED = "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl"
CONVOLUTION, NORM = nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase
DROPOUT = nn.modules.dropout._DropoutNd


def in_backward() -> bool:
    """Whether autograd's engine runs this thread; a forward in it is a checkpoint's recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


def hidden_from_modes() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which no torch dispatch mode sees an operation."""
    return _disable_current_modes() if dispatch_modes() else contextlib.nullcontext()


def parts(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name, shared ones as often as they are there."""
    return module._modules


_lookup, _any_lookup = nn.Module.__getattr__, object.__getattribute__


def child(module: nn.Module, name: str) -> nn.Module | None:
    """Return `module.name` if PyTorch's lookup finds a child; None if that may run the model's code.

    A child's name is no parameter's or buffer's: PyTorch sees to that.
    """
    own, cls = module.__dict__, type(module)
    found: nn.Module | None = own["_modules"].get(name)
    if (
        found is None
        or name in own
        or cls.__getattr__ is not _lookup
        or cls.__getattribute__ is not _any_lookup
        or getattr(cls, name, _lookup) is not _lookup  # a class's attribute hides a child, even if None
    ):
        return None
    return found


def part(module: nn.Module, name: str) -> Any:
    """Return `module.name`; a child in half the time that PyTorch's lookup takes."""
    found = child(module, name)
    return getattr(module, name) if found is None else found


module_call, _call_impl = nn.Module.__call__, nn.Module._call_impl


def calls_alone(module: nn.Module, forward: Any, may_stay: Callable[[Mapping[int, Any]], bool]) -> bool:
    """Whether calling `module` runs `forward`, hooks that `may_stay` or all modules have, and no more."""
    cls, own = type(module), module.__dict__
    after, before = own[HOOKS], own[PRE_HOOKS]
    return (
        cls.forward is forward
        and cls.__call__ is module_call
        and cls._call_impl is _call_impl
        and not (own[BACKWARD_HOOKS] or own[BACKWARD_PRE_HOOKS] or "forward" in own or COMPILED in own)
        and (not (after or before) or (may_stay(after) and may_stay(before)))
    )


def has_users_modes() -> bool:
    """Whether the user has entered a torch function mode, which has to see every function that is called."""
    modes = [torch._C._get_function_stack_at(i) for i in range(function_modes())]
    return any(not isinstance(mode, DeviceContext) for mode in modes)


def is_autocast() -> bool:
    """Whether autocast is on for any device that a kernel may run on."""
    return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")


def is_widened(input: Tensor) -> bool:
    """Whether autocast has some functions take `input` in float32."""
    return input.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(input.device.type)


def is_exporting() -> bool:
    """Whether `torch.export` traces."""
    # In torch 2.11 torch.compiler.is_exporting() is true under torch.compile too.
    return bool(torch.compiler._is_exporting_flag)


def is_replica(module: nn.Module) -> bool:
    """Whether `module` is one of DataParallel's copies, which share the original's hooks."""
    return bool(getattr(module, "_is_replica", False))


def constant_to_compilers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a compiler call `function` once, while it traces.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def quick_apply(function: type[torch.autograd.Function], attribute: str) -> Callable[..., Any]:
    """Return `function.apply` in C++; autograd calls backward directly, and ctx has a slot for `attribute`.

    Each of the three saves up to a microsecond. Before torch 2.14 `apply` is a Python method, for functorch.
    """
    own: Any = function
    cls, apply = own._backward_cls, super(torch.autograd.Function, own).apply
    slotted = {"__slots__": (attribute,), "apply": own.backward}
    own._backward_cls = type(cls.__name__, (cls,), slotted)
    return apply  # type: ignore[no-any-return]


_guards: Any = torch._C._dynamo.guards
_empty_on_gpu: Any = getattr(_guards, "_empty_strided_cuda", None)
_tensor_guards: Any = getattr(_guards, "TensorGuards", None)


def allocator(like: Tensor) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]:
    """Return a function `empty(shape, stride, dtype)` that allocates on `like`'s device.

    On the current GPU it is the one that Inductor's code calls, in half the time of `torch.empty_strided`. No
    dispatch mode sees it.
    """
    if like.is_cuda and _empty_on_gpu is not None and current_device() == like.get_device():  # type: ignore[misc]
        return _empty_on_gpu  # type: ignore[no-any-return]
    device = like.device
    return lambda shape, stride, dtype: torch.empty_strided(shape, stride, dtype=dtype, device=device)


def guard(*tensors: Tensor) -> Callable[..., bool]:
    """Return a function that tells, in one step, whether other tensors, none of them nested, are like these.

    Code that `torch.compile` made asks such a guard about its inputs. It compares type, dtype, GPU, shape,
    strides, `requires_grad` and dispatch keys. The keys tell layouts, negated views, functorch's tensors and
    tracing, and whether functorch's transforms or autocast are active. A nested tensor would end the process,
    since it has no strides. The same tensor twice is like nothing.
    """
    if _tensor_guards is None:
        return lambda *_: False
    sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    check: Callable[..., bool] = _tensor_guards(
        *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
    ).check
    return check
