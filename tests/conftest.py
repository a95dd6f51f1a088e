"""Where the kernels run in this test session, and what every test may count on.

With a GPU, on it. Without one, on CPU tensors in Triton's interpreter, which has to be chosen before
Triton is imported. Tests that need a GPU are skipped by the `cuda` fixture, which says so.
"""

import os

# Before PyTorch is imported. The tensors are tiny, and each core has a process with tests: more threads would
# only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


try:
    import triton
except ImportError:
    triton = None
else:
    if not torch.cuda.is_available():
        import interpreter

        interpreter.install()


def pytest_collection_modifyitems(items):
    """Begin with the simulated GPU's groups, each of which takes minutes; other workers steal the rest."""
    items.sort(key=lambda item: item.path.name != "test_simulated.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture
def device() -> str:
    """Where the kernels run: "cuda", or "cpu" in the interpreter."""
    if triton is None:
        pytest.skip("needs Triton: the kernels run neither on a GPU nor in its interpreter")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: its generator, streams or memory")
    return "cuda"


@pytest.fixture
def two():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")


def _forget_kernels():
    from fusedact import dispatch
    from fusedact.kernels import configuration

    configuration._forward_kernel.cache_clear()
    configuration._backward_kernel.cache_clear()
    dispatch.configured.cache_clear()
    dispatch._latest.clear(), dispatch._shared.clear()


@pytest.fixture
def cold():
    """As in a new process: nothing is configured or loaded."""
    _forget_kernels()


@pytest.fixture
def no_graphs(monkeypatch):
    """A first launch compiles no second kernel for CUDA graphs, which would take as long as the first."""
    from fusedact.kernels.launcher import Kernel

    monkeypatch.setattr(Kernel, "_load", lambda *arguments: None)
    yield
    _forget_kernels()


@pytest.fixture
def nothing_shared():
    """No call can be like one of another test."""
    from shared import forget

    forget()
    yield
    forget()


@pytest.fixture
def only_shared(monkeypatch):
    """A function from whose call on no call runs that is unlike all earlier ones."""
    from fusedact import autograd, dispatch

    def refuse(*_):
        raise AssertionError("not a shared call")

    def start():
        monkeypatch.setattr(dispatch, "by_kernels", refuse)
        monkeypatch.setattr(autograd, "_checked_backward", refuse)

    return start


@pytest.fixture
def kernels_of(cuda, pytestconfig):
    """A function that lists the kernels that a call runs: by the profiler, or the simulated GPU's log."""
    if pytestconfig.pluginmanager.hasplugin("tests.simulator.plugin"):
        from tests.simulator import gpu

        return gpu.kernels_of

    def profiled(call):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        ran = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return [name for name in ran if "kernel" in name]

    return profiled


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """`torch.empty` gives NaN, so that an element that nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
