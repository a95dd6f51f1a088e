"""Activation and dropout in one kernel: one forward, one backward, ReLU's one bit kept."""

from . import functional
from .fusion import FusionReport, Pair, fuse, fusion_report, unfuse
from .monitor import ActivityMonitor, ActivityReport, LayerActivity
from .nn import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout

__all__ = [
    "ActivityMonitor",
    "ActivityReport",
    "FusedELUDropout",
    "FusedLeakyDropout",
    "FusedReLUDropout",
    "FusionReport",
    "LayerActivity",
    "Pair",
    "functional",
    "fuse",
    "fusion_report",
    "unfuse",
]
__version__ = "0.1.0"
