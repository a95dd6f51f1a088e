"""What the monitor's kernels read of an input, what they count of it, and in which rows they add it."""

import enum
from typing import NamedTuple


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
