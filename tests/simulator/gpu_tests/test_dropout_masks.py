"""Two restatements of PyTorch's dropout agree: the driver's, thread by thread, and fusedact's oracle."""

import pytest
import torch
from cases import DTYPES, edges

from fusedact import masks

SEEDS = (0, 1, 2**32 - 1, 2**40 + 7, 2**63 + 5)
OFFSETS = (0, 4, 2**34 - 4, 2**34, 2**40)


def draw(x, p):
    """What native_dropout keeps, and what the oracle says it should."""
    generator = torch.cuda.default_generators[x.device.index]
    offset = generator.get_offset()
    keep = torch.native_dropout(x, p, True)[1].cpu()
    properties = torch.cuda.get_device_properties(x.device)
    processors = properties.multi_processor_count, properties.max_threads_per_multi_processor
    alignment = x.data_ptr() & -x.data_ptr() & 15 or 16
    seed = generator.initial_seed() % 2**64
    return keep, masks.eager_mask(x.numel(), p, x.dtype, seed, offset, *processors, alignment)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_and_alignments(dtype, cuda):
    for n in edges():
        for start in (0, 1, 2, 4):
            keep, oracle = draw(torch.ones(n + start, device=cuda, dtype=dtype)[start:], 0.3)
            assert torch.equal(keep, oracle), (n, start)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [1e-10, 0.001, 0.5, 0.3, 0.999])
def test_seeds_offsets_and_probabilities(dtype, p, cuda):
    generator = torch.cuda.default_generators[0]
    for seed in SEEDS:
        for offset in OFFSETS:
            for n in (1021, 4 * 1021, 8 * 1021):
                generator.manual_seed(seed)
                generator.set_offset(offset)
                keep, oracle = draw(torch.ones(n, device=cuda, dtype=dtype), p)
                assert torch.equal(keep, oracle), (seed, offset, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_replay_of_a_graph(dtype, cuda):
    """There seed and offset come from the device's memory."""
    generator = torch.cuda.default_generators[0]
    properties = torch.cuda.get_device_properties(0)
    processors = properties.multi_processor_count, properties.max_threads_per_multi_processor
    x = torch.ones(40_000, device=cuda, dtype=dtype)
    generator.manual_seed(SEEDS[3])
    generator.set_offset(OFFSETS[2])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.rand(5, device=cuda)
        keep = torch.native_dropout(x, 0.3, True)[1]
    for _ in range(3):
        offset = generator.get_offset()
        graph.replay()
        oracle = masks.eager_mask(x.numel(), 0.3, dtype, SEEDS[3], offset + 4, *processors)
        assert torch.equal(keep.cpu(), oracle)


def test_what_isnt_dense_is_numbered_in_its_logical_order(cuda):
    """PyTorch's vectorised kernel takes dense tensors only."""
    torch.manual_seed(3)
    values, keep = torch.native_dropout(torch.ones(100, 64, device=cuda)[:, ::2], 0.3, True)
    torch.manual_seed(3)
    oracle = draw(torch.ones(3201, device=cuda)[1:], 0.3)[0]  # misaligned, hence not vectorised either
    assert torch.equal(keep.flatten().cpu(), oracle)
    assert torch.equal(values != 0, keep)
