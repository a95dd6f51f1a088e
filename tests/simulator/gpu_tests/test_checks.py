"""What the simulated driver refuses or notices: each of its checks, provoked."""

import ctypes

import pytest
import torch
import triton
import triton.language as tl

from tests.simulator import gpu, memory


@triton.jit
def add_one(x, y, N, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place, mask=place < N) + 1, mask=place < N)


def vectors(n=256, device=0):
    x = torch.randn(n, device=f"cuda:{device}")
    return x, torch.empty_like(x)


def test_a_kernel_runs(cuda):
    x, y = vectors()
    add_one[(2,)](x, y, 256, 128)
    assert torch.equal(y, x + 1)


def test_memory_of_another_device(cuda):
    x, _ = vectors(device=1)
    _, y = vectors(device=0)
    with gpu.provoked("memory of device 1|outside of its"), pytest.raises(Exception, match="Triton"):
        add_one[(2,)](x, y, 256, 128)


def test_accesses_behind_an_allocation(cuda):
    x, y = vectors()
    with gpu.provoked("outside of its arguments' allocations"):
        add_one[(2**20,)](x, y, 2**30, 128)


def launch_as_before(kernel, grid, stream, *arguments):
    """As a launcher does that keeps what Triton compiled: nothing is compiled for these arguments."""
    blocks = (*grid, 1, 1)[:3]
    kernel.run(*blocks, stream, kernel.function, kernel.packed_metadata, None, None, None, *arguments)


def test_a_misaligned_access(cuda):
    x, y = vectors(1024)
    kernel = add_one[(1,)](x, y, 1024, 1024)  # pointers aligned to 16 bytes: four elements at a time
    with gpu.provoked("16 bytes read at .* misaligned"):
        launch_as_before(kernel, (1,), torch.cuda.current_stream().cuda_stream, x[1:], y, 1008, 1024)


def test_a_write_behind_the_end(cuda):
    p = ctypes.c_uint64()
    assert gpu.library.cuMemAlloc_v2(ctypes.byref(p), ctypes.c_size_t(100)) == 0
    ctypes.memset(p.value + 100, 0, 1)
    with gpu.provoked("behind the end of an allocation of 100 bytes"):
        gpu.library.cuMemFree_v2(p)


def test_a_stream_and_an_event_of_another_device(cuda):
    x, y = vectors(device=0)
    kernel = add_one[(2,)](x, y, 256, 128)
    other = torch.cuda.Stream(device=1).cuda_stream
    with gpu.provoked("launched on a stream of device 1"), pytest.raises(RuntimeError):
        launch_as_before(kernel, (2,), other, x, y, 256, 128)
    event = torch.cuda.Event()
    event.record()
    with gpu.provoked("an event of device 0 recorded on a stream of device 1"):
        gpu.library.cuEventRecord(ctypes.c_void_p(event.cuda_event), ctypes.c_void_p(other))


def test_a_grid_beyond_the_limits(cuda):
    x, y = vectors()
    with gpu.provoked("a grid of 1 x 65536 x 1"), pytest.raises(RuntimeError):
        add_one[(1, 65536)](x, y, 256, 128)


def test_what_a_capture_forbids(cuda):
    graph = torch.cuda.CUDAGraph()
    with (
        gpu.provoked("while a stream captures"),
        pytest.raises(RuntimeError),
        torch.cuda.graph(graph, stream=torch.cuda.Stream()),
    ):
        torch.cuda.synchronize()


def test_a_kernel_of_pytorchs_own(cuda):
    with gpu.provoked("a kernel of PyTorch's own: .*spin_kernel"), pytest.raises(RuntimeError):
        torch.cuda._sleep(10)


@pytest.mark.parametrize("when", ["launched", "replayed"])
def test_a_function_of_an_unloaded_module(when, cuda):
    x, y = vectors()
    kernel = add_one[(2,)](x, y, 256, 128)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add_one[(2,)](x, y, 256, 128)
    add_one.device_caches.clear()  # of Triton, which would launch it again
    assert gpu.library.cuModuleUnload(ctypes.c_void_p(kernel.module)) == 0
    if when == "launched":
        with gpu.provoked("whose module was unloaded"), pytest.raises(RuntimeError):
            launch_as_before(kernel, (2,), torch.cuda.current_stream().cuda_stream, x, y, 256, 128)
    else:
        with gpu.provoked("runs after its module was unloaded"):
            graph.replay()


def test_deferred_work_runs_when_somebody_waits(cuda):
    x, y = vectors()
    y.fill_(9)
    side = torch.cuda.Stream()
    with gpu.deferred(), torch.cuda.stream(side):
        add_one[(2,)](x, y, 256, 128)
        assert not torch.equal(memory.alias(y), memory.alias(x) + 1)
        side.synchronize()
        assert torch.equal(memory.alias(y), memory.alias(x) + 1)


def test_two_devices_differ(cuda):
    assert torch.cuda.device_count() == 2
    names = [torch.cuda.get_device_properties(i).multi_processor_count for i in (0, 1)]
    assert names == [4, 6]
