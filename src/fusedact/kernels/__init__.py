"""The Triton kernels, and how they are launched. The modules below import Triton; this one does not."""

import importlib.util

INSTALLED = importlib.util.find_spec("triton") is not None
