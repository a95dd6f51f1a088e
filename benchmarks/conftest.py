"""The suite's options, clock, order and time limit, and a line that names the rows left out."""

import argparse
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import suite
from benchmarks.backends import EVERY, USUAL

DEADLINE = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedact")
    group.addoption(
        "--quick",
        action="store_true",
        help="only the smallest and the largest size, the first dtype, and no compiled training step",
    )
    group.addoption(
        "--activations",
        type=_activations,
        default=[row.name for row in USUAL],
        metavar="NAME,...",
        help=f"names, or all (default: {','.join(row.name for row in USUAL)}; identity is plain dropout)",
    )
    group.addoption(
        "--minutes",
        type=float,
        help="rows that haven't begun by then are skipped (default: 9; with --quick 1.5)",
    )


def _activations(text: str) -> list[str]:
    every = [row.name for row in EVERY]
    names = every if text == "all" else text.split(",")
    if unknown := sorted(set(names) - set(every)):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose of {', '.join(every)}, or all")
    return names


def _minutes(config: pytest.Config) -> float:
    minutes: float | None = config.getoption("--minutes")
    return (1.5 if config.getoption("--quick") else 9.0) if minutes is None else minutes


def pytest_configure(config: pytest.Config) -> None:
    config.stash[DEADLINE] = time.monotonic() + 60 * _minutes(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the rows that the deadline may cut to the end: the sizes and dtypes of single layers."""
    items.sort(key=lambda item: item.name.startswith("test_layer["))
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=suite.synchronised_clock))
    dropped = [item for item in items if not _is_wanted(item, config)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def _is_wanted(item: pytest.Item, config: pytest.Config) -> bool:
    parameters = _parameters(item)
    activation = parameters.get("activation")
    if activation is not None and activation.name not in config.getoption("--activations"):
        return False
    if not config.getoption("--quick"):
        return True
    return (
        parameters.get("n", suite.SIZES[0]) in (suite.SIZES[0], suite.SIZES[-1])
        and parameters.get("dtype", suite.DTYPES[0]) == suite.DTYPES[0]
        and not (item.name.startswith("test_step[") and parameters["backend"] == "compiled")
    )


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(autouse=True)
def _in_time(request: pytest.FixtureRequest) -> None:
    if time.monotonic() > request.config.stash[DEADLINE]:
        pytest.skip(f"left out: the run's {_minutes(request.config):g} minutes are over")


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    if suite.CUDA:
        torch.cuda.empty_cache()


@pytest.fixture
def before() -> int:
    """Return the bytes in use before the row allocates anything."""
    return suite.allocated()


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    compiled = _parameters(request.node).get("backend") == "compiled"
    if compiled and not suite.CUDA and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("left out: torch.compile on a CPU needs a C++ compiler")


def pytest_report_header(config: pytest.Config) -> str:
    minutes = _minutes(config)
    if suite.CUDA:
        return f"fusedact benchmarks on {torch.cuda.get_device_name()}: at most about {minutes:g} minutes"
    return (
        f"fusedact benchmarks on a CPU, at most about {minutes:g} minutes: no GPU here, so left out are the "
        'Triton kernels (fused is eager\'s composition), rng="fast", CUDA graphs, memory, bfloat16 and '
        "float16, and more than 2**20 elements"
    )
