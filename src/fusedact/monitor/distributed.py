"""The tallies of all processes, added up."""

from typing import Any, NamedTuple

import torch.distributed as dist

from .tally import Tally


class Place(NamedTuple):
    """The identity of a tally, the same in every process and on every device.

    Attributes:
        layer: its name.
        call: the number of the call in one forward, from 1.
        units: the number of the input's units.
        axis: their dimension, from the front.
        dims: the number of the input's dimensions.
    """

    layer: str
    call: int
    units: int
    axis: int
    dims: int


def reduced(tallies: dict[Place, Tally], group: "dist.ProcessGroup | None") -> dict[Place, Tally]:
    """Return the tallies added up over the processes; a layer needn't have run in each of them."""
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
