"""What is timed launches fusedact's kernels. Times themselves are no matter for tests."""

import json

import pytest
from cases import representatives

from benchmarks import host_time, pair_time


@pytest.fixture(autouse=True)
def short(monkeypatch, cuda):
    monkeypatch.setattr(host_time, "CALLS", 1)


@representatives
def test_a_row_has_the_times_of_eager_module_and_pair(activation, kernels_of):
    rows = []
    names = kernels_of(lambda: rows.extend(host_time.measure([activation], rounds=1)))
    assert [row["direction"] for row in rows] == ["forward", "forward and backward"]
    assert all(min(row[name] for name in ("eager", "module", "pair")) > 0 for row in rows)
    for row in rows:  # in one round
        assert row["pair / eager"] == row["fastest pair"] / row["fastest eager"] == row["pair"] / row["eager"]
    runs = 2 * (host_time.WARM + 1)  # of module and pair, per direction
    assert (names.count("forward_kernel"), names.count("backward_kernel")) == (2 * runs, runs)


def test_all_ways_of_writing_a_pair_take_the_kernels_path(kernels_of, tmp_path, monkeypatch):
    monkeypatch.setattr(host_time, "on_one_core", lambda: None)
    monkeypatch.setattr(pair_time, "on_one_core", lambda: None)
    path = tmp_path / "times.json"
    names = kernels_of(lambda: pair_time.main(["--rounds", "1", "--json", str(path)]))
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 4 * 3
    assert all(row["pair"] > 0 and row["module"] > 0 and row["eager"] > 0 for row in rows)
    assert names.count("forward_kernel") == 2 * (host_time.WARM + 1) * len(rows)
