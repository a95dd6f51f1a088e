"""Activation and dropout in one kernel: one forward, one backward, ReLU's one bit kept."""

from . import functional
from .activity import ActivityMonitor
from .fusion import FusionReport, Pair, fuse, fusion_report, unfuse
from .nn import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout

__all__ = [
    "ActivityMonitor",
    "FusedELUDropout",
    "FusedLeakyDropout",
    "FusedReLUDropout",
    "FusionReport",
    "Pair",
    "functional",
    "fuse",
    "fusion_report",
    "unfuse",
]
__version__ = "0.1.0"
