"""The counts of one layer's units."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.counted import Row


class Tally(NamedTuple):
    """The counts of one layer's units, on one device.

    Attributes:
        counts: int64 [6, 1 + units], see `Row`.
        activity: float64 [units]: the sum of |h| over the samples that were read, but for those left out.
    """

    counts: Tensor
    activity: Tensor

    @classmethod
    def zeros(cls, units: int, device: torch.device | str) -> "Tally":
        """Return a tally of zeros."""
        return cls(
            torch.zeros(len(Row), 1 + units, dtype=torch.int64, device=device),
            torch.zeros(units, dtype=torch.float64, device=device),
        )

    def __add__(self, other: "Tally") -> "Tally":  # type: ignore[override]
        return Tally(self.counts + other.counts, self.activity + other.activity)

    def cpu(self) -> "Tally":
        """Return a copy on the CPU. This waits for all streams, since any of them may count."""
        self._wait()
        return Tally(*(tensor.to("cpu", copy=True) for tensor in self))

    def clone(self) -> "Tally":
        """Return a copy on the same device. This waits for all streams."""
        self._wait()
        return Tally(*(tensor.clone() for tensor in self))

    def _wait(self) -> None:
        if self.counts.device.type == "cuda":
            torch.cuda.synchronize(self.counts.device)

    def number(self, row: Row) -> int:
        """Return the first number of a row."""
        return int(self.counts[row, 0])

    def units(self, row: Row) -> Tensor:
        """Return a row's numbers of the units."""
        return self.counts[row, 1:]
