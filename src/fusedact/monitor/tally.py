"""The counts of one layer's units, and what is counted of an input."""

import enum
from typing import NamedTuple

import torch
from torch import Tensor


class Row(enum.IntEnum):
    """The rows of a tally's counts. Each has a number of its own, then one for each unit.

    FIRED: samples; positive inputs.
    ALIVE: calls; inputs outside the activation's dead ranges, of rows that positive inputs don't tell.
    NAN: samples that were checked for values that aren't finite; inputs that are NaN.
    INFINITE: 0; of the samples checked, inputs that are infinite.
    SATURATED: samples that were read for |h|; saturated inputs.
    LEFT_OUT: 0; of the samples read, those whose input or h isn't finite, which `activity` leaves out.
    """

    FIRED = 0
    ALIVE = 1
    NAN = 2
    INFINITE = 3
    SATURATED = 4
    LEFT_OUT = 5


class Tally(NamedTuple):
    """What has been counted of a layer's units, on the device where they are.

    Attributes:
        counts: int64 [6, 1 + units], see `Row`.
        activity: float64 [units]: the sum of |h| over the samples that were read and aren't left out.
    """

    counts: Tensor
    activity: Tensor

    @classmethod
    def zeros(cls, units: int, device: torch.device | str) -> "Tally":
        """Return an empty one."""
        return cls(
            torch.zeros(len(Row), 1 + units, dtype=torch.int64, device=device),
            torch.zeros(units, dtype=torch.float64, device=device),
        )

    def __add__(self, other: "Tally") -> "Tally":  # type: ignore[override]
        return Tally(self.counts + other.counts, self.activity + other.activity)

    def cpu(self) -> "Tally":
        """Return a copy on the CPU; waits for all streams, any of which may count."""
        self._wait()
        return Tally(*(tensor.to("cpu", copy=True) for tensor in self))

    def clone(self) -> "Tally":
        """Return a copy where it is; waits for all streams."""
        self._wait()
        return Tally(*(tensor.clone() for tensor in self))

    def _wait(self) -> None:
        if self.counts.device.type == "cuda":
            torch.cuda.synchronize(self.counts.device)

    def number(self, row: Row) -> int:
        """Return the number with which a row begins."""
        return int(self.counts[row, 0])

    def units(self, row: Row) -> Tensor:
        """Return a row's number for each unit."""
        return self.counts[row, 1:]


class Shape(NamedTuple):
    """A dense input as it lies in memory."""

    outer: int
    units: int
    inner: int


class Sampling(NamedTuple):
    """Which samples of an input are read.

    Attributes:
        shape: of the input.
        run: samples that are read together: one, or after a convolution, where inner is above 1, at most
            that many consecutive positions.
        stride: every stride-th run is read.
        samples: how many samples these runs have.
    """

    shape: Shape
    run: int
    stride: int
    samples: int


class Figures(NamedTuple):
    """What is counted of the samples that are read: see `Row`.

    Attributes:
        fired: positive inputs, and inputs that aren't dead.
        finite: inputs that are NaN or infinite.
        activity: |h|, saturated inputs, and calls.
    """

    fired: bool
    finite: bool
    activity: bool
