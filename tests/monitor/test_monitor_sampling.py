"""Which samples of large inputs are read for mean |h|."""

import pytest
import torch
from cases import values, watched
from watching import kinds, only, recount

from fusedact import ActivityMonitor
from fusedact.monitor.counting import RUN, WHOLE


def read_samples(x, dim, stride):
    """Those whose |h| is read, as [samples, units]: of x's memory [outer, units, inner], runs of inner."""
    if x.numel() <= WHOLE:
        stride = 1
    units, inner = x.shape[dim], x.stride(dim)
    view = (
        x.detach().cpu().as_strided((x.numel() // (units * inner), units, inner), (units * inner, inner, 1))
    )
    runs = [run for sample in view for run in sample.split(RUN, 1)]
    return torch.cat([run.T for run in runs[::stride]])


SAMPLED = {
    "units last": ((700, 96), -1),
    "sequences": ((7, 100, 96), -1),
    "positions fill runs": ((6, 8, 16, 128), 1),
    "positions do not": ((6, 8, 9, 163), 1),
    "fewer positions than a run": ((300, 40, 3, 2), 1),
    "one sample": ((1, 2**17), -1),
    "read whole": ((2, WHOLE // 2), -1),
    "just too large": ((17, WHOLE // 16), -1),
}


def check_sampled(layer, activation, x, dim, stride):
    read = read_samples(x, dim, stride)
    fired, samples, _ = recount(activation, x, dim)
    assert (layer.samples, layer.activity_samples) == (samples, len(read))
    assert torch.equal(layer.fired, fired)
    _, _, activity = recount(activation, read)
    tolerance = max(torch.finfo(x.dtype).eps, 1e-6)
    torch.testing.assert_close(layer.activity, activity, rtol=tolerance, atol=tolerance)
    ranges = activation.saturated(*values(activation))
    if not ranges:
        assert layer.saturated is None
    else:
        low = (read.double() <= ranges[0][1]).double().mean().item()
        assert layer.saturated == pytest.approx(low, abs=1e-12)


@watched
@kinds
@pytest.mark.parametrize("stride", [1, 2, 31])
@pytest.mark.parametrize("case", SAMPLED)
def test_every_strideth_sample_is_read(activation, make, stride, case):
    shape, dim = SAMPLED[case]
    x, module = torch.randn(shape) * 4, make(activation)
    with ActivityMonitor(module, units=dim, stride=stride) as monitor:
        module(x)
    check_sampled(only(monitor.report()), activation, x, dim, stride)
