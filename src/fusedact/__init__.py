"""Activation and dropout in one kernel: one forward, one backward, ReLU's one bit kept."""

from . import functional
from .activity import ActivityMonitor
from .fuse import fuse, unfuse
from .nn import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout

__all__ = [
    "ActivityMonitor",
    "FusedELUDropout",
    "FusedLeakyDropout",
    "FusedReLUDropout",
    "functional",
    "fuse",
    "unfuse",
]
__version__ = "0.1.0"
