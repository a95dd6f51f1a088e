"""The report: table, lookup, advice, plot."""

import copy
import dataclasses
import json
import math
import re
import sys

import pytest
import torch
from cases import ROOT, WATCHED, public
from torch import nn
from watching import net, only

import fusedact
from benchmarks.dead_neurons.__main__ import RESULTS
from benchmarks.dead_neurons.page import load
from benchmarks.dead_neurons.questions import ACCURACY, SILENT, TUTORIAL
from benchmarks.dead_neurons.regimes import FAST_ADAM
from fusedact import ActivityMonitor, FusedELUDropout, FusedReLUDropout
from fusedact.monitor import advice
from fusedact.monitor.counting import WHOLE


def test_as_dict_is_plain():
    model = nn.Sequential(*(public(a).module() for a in WATCHED))
    with ActivityMonitor(model) as monitor:
        model(torch.randn(9, 4))
    figures = monitor.report().as_dict()
    assert json.loads(json.dumps(figures)) == figures
    names = {"units", "samples", "dead", "dormant", "saturated", "negative", "mean_activity", "dead_units"}
    names |= {"axis", "nan", "inf", "nan_units", "inf_units", "calls"}
    assert all(names <= set(row) for row in figures.values())
    assert all(row["samples"] == 9 and row["units"] == 4 for row in figures.values())


TABLE = """\
Window 1; |h|, dormant and saturated are of the samples read; dormant: at most 0.025 of the layer's mean |h|
layer  activation  axis  units  samples       dead  negative  trend   read  mean |h|    dormant  saturated
1      ReLU           1      4    32769  1 (25.0%)     25.0%      -  16913       1.5  1 (25.0%)          -
2      ELU            1      4    32769          -     25.0%      -  16913       1.5  1 (25.0%)       0.0%"""


def test_table():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.ELU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0, -5.0]))
    with ActivityMonitor(model) as monitor:
        model(torch.zeros(WHOLE // 4, 2))
        model(torch.zeros(WHOLE // 4 + 1, 2))
    assert str(monitor.report()) == TABLE


def advised(module, *windows):
    """The last window's advice for inputs of 200 samples (or as given) per window."""
    monitor = ActivityMonitor(module)
    for values in windows[:-1]:
        module(torch.tensor(values).expand(200, -1))
        monitor.end_window()
    module(torch.tensor(windows[-1]).expand(200, -1))
    monitor.close()
    return " ".join(monitor.report().advice())


def test_advice_needs_its_cause():
    alive, dead = [1.0] * 10, [-1.0] + [1.0] * 9
    assert advised(nn.ReLU(), alive) == ""
    assert advised(nn.ReLU(), alive, alive) == ""
    text = advised(nn.ReLU(), dead)
    assert "1 of 10 units (10.0%) never fired in 200 samples. With Adam, a tenth of the learning rate" in text
    assert "LeakyReLU and ELU left fewer units silent" in text
    assert "no dropout" not in text
    assert "p = 0.8. A p of 0.8 left more dead units" in advised(FusedReLUDropout(0.8), dead)
    assert "no dropout" not in advised(FusedReLUDropout(0.5), dead)


def test_advice_is_of_what_the_study_compares():
    dead = [-1.0] + [1.0] * 9
    for module in (nn.LeakyReLU(), nn.LeakyReLU(0.0), nn.ELU(0.0)):
        assert advised(module, dead) == ""
    assert advised(nn.ELU(), [-4.0, 1.0]) == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_advice_from_units_that_are_not_finite(value):
    assert advised(nn.ReLU(), [1.0, value], [1.0, value]) == ""
    assert advised(nn.ReLU(), [1.0, 1.0, 1.0], [1.0, value, value]) == ""
    assert advised(nn.ReLU(), [1.0, -1.0], [1.0, value]) == ""


def test_advice_from_few_samples_is_to_take_more():
    module = nn.ReLU()
    with ActivityMonitor(module) as monitor:
        module(-torch.ones(99, 3))
        (line,) = monitor.report().advice()
        assert line.startswith(
            "(the model): 3 units silent in 99 samples, too few to tell. Take a longer window;"
        )
        module(-torch.ones(1, 3))
        assert "never fired in 100 samples" in " ".join(monitor.report().advice())


def test_advice_names_sections_of_the_study_that_found_it():
    """The committed results say so: each sentence's comparisons are clear, and of its direction."""
    page = (ROOT / "docs" / "study.md").read_text()
    anchors = {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in HEADS.findall(page)}
    lines = [advised(FusedReLUDropout(0.8), [-1.0] + [1.0] * 9), *short_window().advice()]
    named = set(re.findall(r"docs/study\.md#([\w-]+)", " ".join(lines)))
    assert named == {advice.RATE, advice.REMEDIES, advice.KILLS, advice.MEASURED} <= anchors
    study = load(RESULTS)
    found = {
        (a.question.section, a.question.measure, a.question.new): (a.clear, a.difference)
        for a in study.answers
    }
    killing = dataclasses.replace(TUTORIAL, optimiser=FAST_ADAM)
    for section, measure, new, clear, sign in (
        ("rate", SILENT, TUTORIAL, True, -1),
        ("rate", ACCURACY, TUTORIAL, True, 1),
        ("remedies", SILENT, dataclasses.replace(TUTORIAL, activation="leaky_relu"), True, -1),
        ("remedies", SILENT, dataclasses.replace(TUTORIAL, activation="elu"), True, -1),
        ("remedies", ACCURACY, dataclasses.replace(TUTORIAL, activation="leaky_relu"), False, 0),
        ("remedies", ACCURACY, dataclasses.replace(TUTORIAL, activation="elu"), False, 0),
        ("remedies", ACCURACY, dataclasses.replace(killing, activation="leaky_relu"), False, 0),
        ("remedies", ACCURACY, dataclasses.replace(killing, activation="elu"), True, 1),
        ("kills", SILENT, dataclasses.replace(TUTORIAL, p=0.8), True, 1),
    ):
        assert found[section, measure, new][0] == clear, (section, measure, new)
        assert found[section, measure, new][1] * sign >= 0


HEADS = re.compile(r"^## (.*)$", re.MULTILINE)


def short_window():
    with ActivityMonitor(nn.ReLU()) as monitor:
        monitor._model(-torch.ones(20, 3))
    return monitor.report()


def test_layers_by_name():
    model = net(nn.ReLU())
    with ActivityMonitor(model) as monitor:
        report = monitor.report()
        with pytest.raises(KeyError, match="layer '1' was not called in window 1"):
            report["1"]
        model(torch.randn(5, 12))
    report = monitor.report()
    assert report["1"] is report.layers[0]
    assert list(report) == list(report.layers)
    assert len(report) == 1
    with pytest.raises(KeyError, match="no layer is named '2'; this report has '1'"):
        report["2"]


def test_the_classes_are_exported():
    with ActivityMonitor(nn.ReLU()) as monitor:
        monitor._model(torch.ones(2, 3))
    assert isinstance(monitor.report(), fusedact.ActivityReport)
    assert isinstance(monitor.report()["(the model)"], fusedact.LayerActivity)


@pytest.mark.parametrize("broken", [None, "raises"])
def test_plot_without_matplotlib(broken, monkeypatch, tmp_path):
    if broken:
        (tmp_path / "matplotlib").mkdir()
        (tmp_path / "matplotlib" / "__init__.py").write_text("raise RuntimeError('numpy is another')")
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monitor = ActivityMonitor(nn.ReLU())
    with pytest.raises(ImportError, match=r"plot\(\) needs matplotlib, .*: pip install matplotlib"):
        monitor.plot()


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), FusedELUDropout())
    with ActivityMonitor(model) as monitor:
        monitor.plot()  # empty
        for _ in range(3):
            model(torch.randn(50, 4))
            monitor.end_window()
        model(torch.randn(50, 4))
    figure = monitor.plot()
    figure.savefig(tmp_path / "plot.png")
    left, right = figure.axes
    assert list(left.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert len(right.patches) == 2


def test_what_the_plot_shows():
    pytest.importorskip("matplotlib")
    with ActivityMonitor(nn.ReLU()) as monitor:
        monitor._model(torch.tensor([[4.0, 4.0, 0.01, -1.0]]))
    left, right = monitor.plot().axes
    shown = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert shown == {"(the model): dead": [25.0], "(the model): dormant": [50.0]}
    assert right.patches[0].get_xy()[:, 0].max() == pytest.approx(4 / 2.0025)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_plot_without_finite_activity(value):
    pytest.importorskip("matplotlib")
    with ActivityMonitor(model := net(nn.ReLU())) as monitor:
        model[1](torch.full((5, 12), value))
    monitor.plot()
    assert not only(monitor.report()).dormant.any()


def test_layers_that_were_not_called():
    model = nn.Sequential(FusedReLUDropout(), nn.ReLU())
    with ActivityMonitor(model, mode="train") as monitor:
        model.eval()(torch.ones(2, 3))
        copy.deepcopy(model).train()(torch.ones(2, 3))
        report = monitor.report()
    assert report.silent == ("0", "1")
    assert "Not called in this window: 0, 1. Run the model itself, not a copy" in str(report)
