"""Which units fire: `ActivityMonitor` counts, per layer and unit, while a model runs.

Everything is counted on the activation's input, before dropout: a dropped element is no inactive one.
The counts stay on the device, as 64-bit integers, until a report is asked for.
"""

from .monitor import ActivityMonitor
from .report import ActivityReport, LayerActivity

__all__ = ["ActivityMonitor", "ActivityReport", "LayerActivity"]
