"""pytest -p tests.simulator.plugin: provide simulated GPUs before any test, and fail a test on a violation.

Only tests that run on a GPU are kept. They use the fixture `cuda` or `device`, have "cuda" as a parameter, or
are in gpu_tests.
"""

from collections.abc import Iterator

import pytest

from . import bridge, gpu

bridge.install()


def _runs_on_a_gpu(item: pytest.Item) -> bool:
    fixtures = {"cuda", "device"} & set(getattr(item, "fixturenames", ()))
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return bool(fixtures) or "cuda" in map(str, parameters.values())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if not _runs_on_a_gpu(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    gpu.clear()
    gpu.forget_violations()
    yield
    if found := gpu.violations():
        pytest.fail("\n".join(["a GPU would refuse, or not notice:", *found[:10]]), pytrace=False)
