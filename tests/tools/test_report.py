"""The report's figures, from results made up here, against figures worked out by hand."""

import json
import sys

import pytest

from benchmarks import report
from benchmarks.suite import synchronised_clock

VERSIONS = {"python": "3.12.3", "torch": "2.11.0", "fusedact": "0.1.0", "triton": "3.6.0"}
LAYER = {"kind": "layer", "activation": "relu", "dtype": "bfloat16", "n": 1000, "direction": "both"}


def benchmark(seconds, timer=f"benchmarks.suite.{synchronised_clock.__name__}", **info):
    info = {
        "device": "Made-up GPU",
        "versions": VERSIONS,
        "wrong": None,
        "peak_memory_bytes": 3 * 2**20,
        **info,
    }
    if info["kind"] == "layer":
        info = {"kept_bytes": 125, "bytes": 8250, **info}
    return {"extra_info": info, "options": {"timer": timer}, "stats": {"median": seconds, "mean": 1e9}}


def content(*benchmarks):
    return {"datetime": "2031-02-03T04:05:06+00:00", "benchmarks": list(benchmarks)}


def results(**changes):
    """One case in four backends, its copy, and a training step; `changes` are those of the fused row."""
    return content(
        benchmark(**{"seconds": 10e-6, "backend": "fused", **LAYER, **changes}),
        benchmark(8e-6, backend="fast", **LAYER),
        benchmark(25e-6, backend="eager", **LAYER, kept_bytes=3000),
        benchmark(15e-6, backend="compiled", **LAYER),
        benchmark(4e-6, kind="copy", backend="copy", dtype="bfloat16", n=1000, bytes=4000),
        benchmark(2e-3, kind="step", model="mlp", activation="relu", dtype="bfloat16", n=9, backend="fused"),
        benchmark(3e-3, kind="step", model="mlp", activation="relu", dtype="bfloat16", n=9, backend="eager"),
    )


def table(text, first):
    """The table whose first column is `first`, by column: a list of cells."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line and line[0] == first)
    end = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return {head: list(cells) for head, *cells in zip(lines[start], *lines[start + 2 : end], strict=True)}


def test_figures_of_a_layer():
    found = table(report.text(report.Run(results())), "activation")
    assert found["direction"] == ["both"]
    assert found["fused, us"] == ["10.0"]
    assert found["GB/s"] == ["0.8"]  # 8250 bytes in 10 us
    assert found["of the copy"] == ["82%"]  # of 4000 bytes in 4 us, a gigabyte per second
    assert found["over eager"] == ["2.50"]
    assert found["over compiled"] == ["1.50"]
    assert found["fast, us"] == ["8.0"]
    assert found["fast, of the copy"] == ["103%"]
    assert found["kept, B"] == ["0.125"]
    assert found["kept by eager, B"] == ["3.000"]


def test_figures_of_a_monitor():
    case = {**LAYER, "kind": "monitor"}
    more = [
        benchmark(seconds, backend=name, **case) for seconds, name in ((5e-6, "monitored"), (4e-6, "fused"))
    ]
    found = table(report.text(report.Run(content(*more))), "activation")
    assert (found["without, us"], found["with, us"], found["times as long"]) == (["4.0"], ["5.0"], ["1.25"])


def test_figures_of_a_step():
    found = table(report.text(report.Run(results())), "model")
    assert found["backend"] == ["fused", "eager"]
    assert found["ms"] == ["2.00", "3.00"]
    assert found["over eager"] == ["1.50", "1.00"]
    assert found["peak, MiB"] == ["3", "3"]


def test_sizes_stand_in_order():
    more = results()
    for n, eager in ((2000, 30e-6), (8, 5e-6)):
        case = {**LAYER, "n": n}
        more["benchmarks"] += [
            benchmark(10e-6, backend="fused", **case),
            benchmark(eager, backend="eager", **case),
        ]
    text = report.text(report.Run(more)).partition("How many times")[2]
    assert "| activation | dtype | 8 | 1,000 | 2,000 |" in text
    assert "| relu | bfloat16 | 0.50 | 2.50 | 3.00 |" in text


def test_a_wrong_result_is_refused():
    text = report.text(report.Run(results(wrong="value is not eager's")))
    found = table(text, "activation")
    for column in ("fused, us", "GB/s", "of the copy", "over eager", "over compiled", "kept, B"):
        assert found[column] == ["refused: wrong result"], column
    assert found["fast, us"] == ["8.0"]
    assert "2.50" not in text


def test_nothing_is_compared_with_a_wrong_result():
    wrong = results()
    wrong["benchmarks"][3]["extra_info"]["wrong"] = "gradient"
    found = table(report.text(report.Run(wrong)), "activation")
    assert found["over compiled"] == ["refused: wrong result"]
    assert found["over eager"] == ["2.50"]


def test_a_row_of_another_clock_is_refused():
    found = table(report.text(report.Run(results(timer="perf_counter"))), "activation")
    assert found["over eager"] == ["refused: not synchronised"]


def test_device_versions_and_date_stand_above():
    first = report.text(report.Run(results())).splitlines()[0]
    assert first == "Made-up GPU, python 3.12.3, torch 2.11.0, fusedact 0.1.0, triton 3.6.0, 2031-02-03"


def test_rows_of_two_devices_are_no_run():
    with pytest.raises(ValueError, match="more than one device"):
        report.Run(results(device="Another"))


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "x.json"
    for text in ("", "[]", "{}", json.dumps(content()), json.dumps(content({"stats": {}}))):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x\.json holds no results of benchmarks/"):
            report.load(path)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra `mnist`")
    path, plots = tmp_path / "run.json", tmp_path / "plots"
    path.write_text(json.dumps(results()))
    report.main([str(path), "--plots", str(plots)])
    assert (plots / "run.png").read_bytes().startswith(b"\x89PNG")


def test_no_plot_of_a_run_without_layers(tmp_path, capsys):
    path, case = tmp_path / "run.json", {**LAYER, "kind": "monitor"}
    path.write_text(json.dumps(content(benchmark(5e-6, backend="monitored", **case))))
    report.main([str(path), "--plots", str(tmp_path / "plots")])
    assert "ActivityMonitor" in capsys.readouterr().out
    assert not (tmp_path / "plots").exists()


def test_plots_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "run.json").write_text(json.dumps(results()))
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path / "run.json"), "--plots", str(tmp_path)])
    assert stop.value.code == 1
    assert "matplotlib.figure doesn't import" in capsys.readouterr().err


PAGE = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n\nkept\n" for name in report.BLOCKS)


@pytest.fixture
def blocks(monkeypatch):
    """Blocks that need nothing, but for the GPU's."""
    for name in report.BLOCKS:
        if name != "gpu":
            monkeypatch.setitem(report.BLOCKS, name, lambda results, name=name: f"new {name} \\1")


def test_blocks_are_rewritten(blocks, tmp_path):
    new = report.rewritten(PAGE, tmp_path)
    assert "old" not in new
    assert new.count("\nkept\n") == len(report.BLOCKS)
    assert "<!-- mnist -->\nnew mnist \\1\n<!-- /mnist -->" in new
    assert "<!-- gpu -->\nOn a GPU: not measured yet" in new
    assert report.rewritten(new, tmp_path) == new


def test_a_committed_run_takes_the_place_of_not_measured(blocks, tmp_path):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "made-up.json").write_text(json.dumps(results()))
    new = report.rewritten(PAGE, tmp_path)
    assert "not measured" not in new
    assert "Made-up GPU" in new
    assert "2.50" in new
    assert ".png" not in new
    (tmp_path / "gpu" / "made-up.png").touch()
    assert "(benchmarks/results/gpu/made-up.png)" in report.rewritten(PAGE, tmp_path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (PAGE.replace("<!-- mnist -->", ""), "blocks have to be"),
        (PAGE + "<!-- other -->\n", "blocks have to be"),
        (PAGE.replace("<!-- /mnist -->", ""), "block mnist has no end"),
    ],
)
def test_damaged_markers(blocks, page, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        report.rewritten(page, tmp_path)


def test_check_fails_and_writes_nothing(blocks, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    with pytest.raises(SystemExit) as left:
        report.main(["--readme", str(path), "--check"])
    assert left.value.code == 1
    assert "differs from the results" in capsys.readouterr().err
    assert path.read_text() == PAGE
    report.main(["--readme", str(path)])
    report.main(["--readme", str(path), "--check"])
