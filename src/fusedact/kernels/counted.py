"""Types of the monitor's kernels: the samples that they read, the figures, and the rows of counts."""

import enum
from typing import NamedTuple


class Row(enum.IntEnum):
    """The rows of a tally's counts. A row has one number for the layer, then one number per unit.

    In the list below a semicolon separates the layer's number from the unit's.

    FIRED: samples; positive inputs.
    ALIVE: calls; inputs outside the activation's dead ranges, if positive inputs don't tell dead units.
    NAN: samples that were checked for NaN and infinities; inputs that are NaN.
    INFINITE: 0; infinite inputs of the samples checked.
    SATURATED: samples that were read for |h|; saturated inputs.
    LEFT_OUT: 0; samples read whose input or h isn't finite, and which `activity` leaves out.
    """

    FIRED = 0
    ALIVE = 1
    NAN = 2
    INFINITE = 3
    SATURATED = 4
    LEFT_OUT = 5


class Shape(NamedTuple):
    """The shape [outer, units, inner] of a dense input in memory order."""

    outer: int
    units: int
    inner: int


class Sampling(NamedTuple):
    """The choice of samples that are read from an input.

    Attributes:
        shape: of the input.
        run: samples that are read together: one, or after a convolution (inner above 1) at most that many
            consecutive positions.
        stride: every stride-th run is read.
        samples: the number of samples in these runs.
    """

    shape: Shape
    run: int
    stride: int
    samples: int


class Figures(NamedTuple):
    """The figures that one launch counts; see `Row`.

    Attributes:
        fired: positive inputs, and inputs that aren't dead.
        finite: inputs that are NaN or infinite.
        activity: |h|, saturated inputs, and calls.
    """

    fired: bool
    finite: bool
    activity: bool
