"""The versions and the device of a measurement."""

import platform

import torch

import fusedact


def versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fusedact": fusedact.__version__,
    }
    try:
        import triton
    except ImportError:
        return found
    return {**found, "triton": triton.__version__}


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
