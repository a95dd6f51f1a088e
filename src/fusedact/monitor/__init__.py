"""`ActivityMonitor`, which counts per layer and unit how often a unit fires while a model runs.

All counts are of the activation's input, before dropout, so a dropped element doesn't count as inactive. The
counts stay on the device, as 64-bit integers, until a report is requested.
"""

from .monitor import ActivityMonitor
from .report import ActivityReport, LayerActivity

__all__ = ["ActivityMonitor", "ActivityReport", "LayerActivity"]
