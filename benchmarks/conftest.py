"""Options of the benchmark suite, and a line that says what a machine leaves out."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the smallest and the largest size")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    sizes = {
        item.callspec.params["n"]
        for item in items
        if hasattr(item, "callspec") and "n" in item.callspec.params
    }
    kept = {min(sizes, default=0), max(sizes, default=0)}
    dropped = [
        item for item in items if hasattr(item, "callspec") and item.callspec.params.get("n") not in kept
    ]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def pytest_report_header() -> str:
    if torch.cuda.is_available():
        return f"fusedact benchmarks on {torch.cuda.get_device_name()}"
    return (
        "fusedact benchmarks on a CPU: no GPU here, so the Triton kernels, the device copy's bandwidth, "
        "bfloat16 and sizes above 2**20 are left out"
    )
