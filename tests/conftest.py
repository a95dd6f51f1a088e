"""Where the kernels run in this test session, and what every test may count on.

With a GPU, on it. Without one, on CPU tensors in Triton's interpreter, which has to be chosen before
Triton is imported. Tests that need a GPU are skipped by the `cuda` fixture, which says so.
"""

import os

import numpy
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def _round_as_gpus_do() -> None:
    """Mend three roundings of the interpreter.

    It truncates float32 to bfloat16, where GPUs (and PyTorch) round to nearest even; it rounds a
    float32 fma's product, which float64 holds exactly; and numpy's float32 exp2 varies with the CPU and
    keeps subnormal results, which hardware flushes.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original_cast, original_fma = builder.cast_impl, builder.create_fma

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if (source, target) == (tl.float32, tl.bfloat16):
            data = torch.from_numpy(src.data.copy()).bfloat16().view(torch.uint16).numpy()
        elif (source, target) == (tl.bfloat16, tl.float32):
            data = torch.from_numpy(src.data.copy()).view(torch.bfloat16).float().numpy()
        else:
            return original_cast(self, src, dst_type)
        return interpreter.TensorHandle(data, target)

    def create_fma(self, x, y, z):
        if x.dtype.scalar != tl.float32:
            return original_fma(self, x, y, z)
        wide = x.data.astype("float64") * y.data + z.data
        return interpreter.TensorHandle(wide.astype("float32"), x.dtype.scalar)

    def create_exp2(self, x):
        rounded = numpy.exp2(x.data.astype("float64")).astype(x.data.dtype)
        if x.dtype.scalar == tl.float32:
            rounded[rounded < numpy.finfo("float32").tiny] = 0
        return interpreter.TensorHandle(rounded, x.dtype.scalar)

    builder.cast_impl, builder.create_fma, builder.create_exp2 = cast_impl, create_fma, create_exp2


try:
    import triton
except ImportError:
    triton = None
else:
    if not torch.cuda.is_available():
        _round_as_gpus_do()


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
