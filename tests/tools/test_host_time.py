"""The host's share of a call: the stubs stand where a launch would be."""

from cases import activations

from benchmarks import backends, host_time


@activations
def test_a_stubbed_call_takes_the_kernels_path(activation, monkeypatch):
    monkeypatch.setattr(host_time, "CALLS", 1)
    launches = []
    monkeypatch.setattr(host_time._Launched, "run", lambda self, *arguments: launches.append(arguments))
    with host_time.passing_for_a_gpu():
        host_time.microseconds(backends.fused(activation), backward=True)
    assert len(launches) == 2


def test_a_row_has_both_times_and_their_ratio(monkeypatch):
    monkeypatch.setattr(host_time, "CALLS", 1)
    for row in host_time.measure(backends.USUAL[:1], rounds=1):
        assert row["ratio"] == row["fused_us"] / row["eager_us"] > 0
