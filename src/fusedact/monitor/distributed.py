"""The tallies of all processes, added up."""

from typing import Any, NamedTuple

import torch.distributed as dist

from .tally import Tally


class Place(NamedTuple):
    """What a tally is of, whatever the process and the device.

    Attributes:
        layer: its name.
        call: which of its calls in one forward, from 1.
        units: how many units the input has.
        axis: their dimension, from the front.
        dims: how many dimensions the input has.
    """

    layer: str
    call: int
    units: int
    axis: int
    dims: int


def reduced(tallies: dict[Place, Tally], group: "dist.ProcessGroup | None") -> dict[Place, Tally]:
    """Return the tallies on the CPU, added up over the processes; a layer needn't have run in each."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) < 2:
        return tallies
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, list(tallies), group)
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    total = {}
    for place in sorted({Place(*place) for places in everyones for place in places}):
        mine = tallies.get(place) or Tally.zeros(place.units, "cpu")
        tensors = [tensor.to(device) for tensor in mine]
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)
        total[place] = Tally(*tensors).cpu()
    return total
