import gc
import sys

import pytest
import torch

from fusedact import dispatch


@pytest.fixture(autouse=True)
def as_it_was(cuda):
    """No test leaves another device current, or synchronisation forbidden."""
    yield
    torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.current_device() == 0


@pytest.fixture
def nothing_loaded():
    """As in a new process: none of our kernels is loaded, and nothing of ours is cached."""
    dispatch._latest.clear(), dispatch._shared.clear()
    gc.collect()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "fusedact":
            continue
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()
            if hasattr(value, "device_caches"):  # a Triton function
                value.device_caches.clear()
    gc.collect()
