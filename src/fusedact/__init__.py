"""Activation and dropout in one kernel: one forward, one backward, ReLU's one bit kept."""

from . import functional
from .fuse import fuse, unfuse
from .monitor import ActivityMonitor, ActivityReport, LayerActivity
from .nn import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout

__all__ = [
    "ActivityMonitor",
    "ActivityReport",
    "FusedELUDropout",
    "FusedLeakyDropout",
    "FusedReLUDropout",
    "LayerActivity",
    "functional",
    "fuse",
    "unfuse",
]
__version__ = "0.1.0"
