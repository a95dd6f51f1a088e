"""The Triton kernels and their launches. Only this module and `counted` don't import Triton."""

import importlib.util

INSTALLED = importlib.util.find_spec("triton") is not None
