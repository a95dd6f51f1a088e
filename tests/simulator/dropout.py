"""`native_dropout` of PyTorch's CUDA code: the driver draws the mask, and ATen does the arithmetic."""

import ctypes

import torch
from torch import Tensor

from . import gpu
from .memory import alias, in_turn, reserve_numbers


def native_dropout(input: Tensor, p: float, train: bool | None = None) -> tuple[Tensor, Tensor]:
    if train is False or input.numel() == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    if p == 1:
        return torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
    dense = torch.ops.aten.is_non_overlapping_and_dense(input)
    result, mask = torch.empty_like(input), torch.empty_like(input, dtype=torch.bool)
    properties = torch.cuda.get_device_properties(input.device)
    launch = (
        *(ctypes.c_uint64(number) for number in (input.data_ptr(), input.numel())),
        *(input.itemsize, int(dense)),
        *(properties.multi_processor_count, properties.max_threads_per_multi_processor),
    )
    vec = ctypes.c_uint()
    increment = gpu.library.sim_dropout_increment(*launch, ctypes.byref(vec))
    numbers = reserve_numbers(torch.cuda.default_generators[input.device.index], increment)
    x, y, kept = alias(input), alias(result), alias(mask)

    def work() -> None:
        seed, offset = numbers()
        keep = torch.empty(x.numel(), dtype=torch.bool)
        gpu.library.sim_dropout_mask(
            ctypes.c_void_p(keep.data_ptr()),
            *launch,
            ctypes.c_uint64(seed),
            ctypes.c_uint64(offset),
            ctypes.c_double(1 - p),
        )
        in_memory_order = vec.value > 1
        kept.copy_(keep.as_strided(x.shape, x.stride()) if in_memory_order else keep.view(x.shape))
        wide = x.double() if x.dtype is torch.float64 else x.float()
        y.copy_(wide * kept * (1 / torch.tensor(1 - p, dtype=wide.dtype)))

    in_turn("native_dropout", input.device, work)
    return result, mask


def native_dropout_backward(gradient: Tensor, mask: Tensor, scale: float) -> Tensor:
    result = torch.empty_like(gradient)
    dy, kept, dx = alias(gradient), alias(mask), alias(result)

    def work() -> None:
        wide = dy.double() if dy.dtype is torch.float64 else dy.float()
        dx.copy_(kept * wide * torch.tensor(scale, dtype=wide.dtype))

    in_turn("native_dropout_backward", gradient.device, work)
    return result
