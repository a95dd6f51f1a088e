"""The MNIST comparison on a tiny run, and its errors."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="benchmarks/mnist.py plots: needs the extra `mnist`")
pytest.importorskip("tqdm", reason="benchmarks/mnist.py shows its progress: needs the extra `mnist`")

from tiny_mnist import run, write

from benchmarks import mnist, mnist_data, outputs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def test_a_tiny_run(folder, tmp_path, capsys):
    result = run(
        folder, tmp_path, "--epochs", "2", "--batch-size", "16", "--hidden", "8", "--seeds", "0", "1"
    )
    output = capsys.readouterr().out
    for net in ("ReLU", "LeakyReLU", "ELU"):
        for seed in (0, 1):
            assert f"{net}, seed {seed}\nEpoch 1, Loss: " in output
    assert output.count("Epoch 2, Loss: ") == 6
    assert "mean ± standard deviation over 2 seeds" in output
    assert len(result["runs"]) == 6
    assert result["arguments"]["hidden"] == 8
    assert result["versions"]["torch"]
    for run_ in result["runs"]:
        assert [epoch["epoch"] for epoch in run_["epochs"]] == [0, 1, 2]
        assert all(0 <= epoch["never_fired"] <= 1 for epoch in run_["epochs"])
    assert (tmp_path / "activation_comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_backends_print_identical_figures(folder, tmp_path):
    runs = [
        run(folder, tmp_path, "--epochs", "2", "--backend", backend)["runs"] for backend in ("fused", "eager")
    ]
    for one in (*runs[0], *runs[1]):
        del one["seconds"]
    assert runs[0] == runs[1]


def torchrun(folder, out, *arguments):
    root = Path(__file__).parents[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    script = [str(root / "benchmarks" / "mnist.py"), "--data", str(folder), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [*launcher, *script, "--device", "cpu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_two_processes_print_the_figures_of_one(folder, tmp_path):
    """Where nothing is dropped. Each batch's shares differ in size; the last batch leaves one empty."""
    options = ("--epochs", "2", "--batch-size", "59", "--p", "0", "--lr", "0.01")
    (expected_path := tmp_path / "one").mkdir()
    expected = run(folder, expected_path, *options)
    process = torchrun(folder, tmp_path, *options)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "activation_comparison.json").read_text())
    assert (expected["processes"], result["processes"]) == (1, 2)
    assert process.stdout.count("60 training and 40 test digits") == 1
    assert process.stdout.count("Epoch 2, Loss: ") == 3
    for one, two in zip(expected["runs"], result["runs"], strict=True):
        for epoch, same in zip(one["epochs"], two["epochs"], strict=True):
            assert same == pytest.approx(epoch, rel=1e-4)


def test_two_processes_report_an_error_once(folder, tmp_path):
    (folder / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    process = torchrun(folder, tmp_path)
    assert process.returncode != 0
    assert process.stderr.count("mnist.py: error: ") == 1


def test_never_fired_counts_units_that_no_test_image_fires(folder):
    digits = mnist_data.load(folder)
    net = mnist.build("ReLU", 8, 0.5, "fused")
    net[0].weight.data[:3] = 0
    net[0].bias.data[:3] = -1
    assert mnist.evaluate(net, digits).never_fired == pytest.approx(3 / 8)


def test_evaluation_drops_nothing_and_training_goes_on(folder):
    digits = mnist_data.load(folder)
    net = mnist.build("ReLU", 64, 0.9, "fused")
    assert mnist.evaluate(net, digits) == mnist.evaluate(net, digits)
    assert net.training
    net.eval()
    accuracy = (net(digits.test_images).argmax(1) == digits.test_labels).float().mean().item()
    assert mnist.evaluate(net, digits).accuracy == pytest.approx(100 * accuracy)


def test_epoch_0_is_before_training(folder, tmp_path):
    """A learning rate that kills every ReLU: the units of epoch 0 are those that were born dead."""
    result = run(folder, tmp_path, "--epochs", "1", "--hidden", "16", "--lr", "1e4")
    digits = mnist_data.load(folder)
    for found in result["runs"]:
        torch.manual_seed(found["seed"])
        born = mnist.evaluate(mnist.build(found["activation"], 16, 0.5, "fused"), digits)
        start, trained = found["epochs"]
        assert start == {"epoch": 0, "never_fired": born.never_fired}
        assert trained["never_fired"] > born.never_fired
    rows = result["summary"]
    (panel,) = [line for line in mnist.table(rows, 1).splitlines() if line.startswith("ReLU")]
    relu = [100 * row["never_fired"] for row in rows if row["activation"] == "ReLU"]
    assert panel.split()[-2:] == [f"{value:.1f}" for value in relu]


def test_the_third_panel_starts_at_epoch_0(folder, tmp_path, monkeypatch):
    figures, new_figure = [], mnist.new_figure
    monkeypatch.setattr(
        mnist, "new_figure", lambda **options: figures.append(new_figure(**options)) or figures[-1]
    )
    run(folder, tmp_path, "--epochs", "2", "--hidden", "8")
    starts = [[line.get_xdata()[0] for line in axis.lines] for axis in figures[-1].axes]
    assert starts == [[1] * 3, [1] * 3, [0] * 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_net_that_diverges_costs_no_run(value, folder, tmp_path, monkeypatch, capsys):
    """Its figures are NaN; and its units aren't counted as dead."""
    build = mnist.build

    def diverging(*arguments):
        net = build(*arguments)
        net[0].bias.data.fill_(value)
        return net

    monkeypatch.setattr(mnist, "build", diverging)
    result = run(folder, tmp_path, "--epochs", "1", "--hidden", "8", "--seeds", "0", "1")
    for row in result["summary"]:
        assert row["never_fired"] == row["never_fired_deviation"] == 0
    relu = result["summary"][1]
    assert math.isnan(relu["loss"])
    assert math.isnan(relu["loss_deviation"])
    assert "nan ± nan" in capsys.readouterr().out
    assert (tmp_path / mnist.PLOT).exists()


@pytest.mark.parametrize(
    "option", [("--p", "0"), ("--lr", "0.01"), ("--hidden", "9"), ("--batch-size", "20")]
)
def test_options_count(option, folder, tmp_path):
    runs = [run(folder, tmp_path, "--epochs", "1", *more)["runs"] for more in ((), option)]
    for one, other in zip(*runs, strict=True):
        assert one["epochs"] != other["epochs"]


def test_the_sample_is_whole():
    digits = mnist_data.sample()
    assert digits.train_images.shape == (10_000, 784)
    assert digits.test_labels.shape == (2_000,)
    assert set(digits.train_labels.tolist()) == set(range(10))


# Outputs -------------------------------------------------------------------------------------------------


def a_file(path):
    path.write_text("mine")
    return path


def below_a_file(path):
    return a_file(path) / "deeper"


def with_folders_in_place_of_files(path):
    for name in (mnist.RESULTS, mnist.PLOT):
        (path / name).mkdir(parents=True)
    return path


def of_the_kernel(path):
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc, where nobody can make a file")
    return Path("/proc")


def read_only(path):
    path.mkdir(mode=0o500)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write everywhere")
    return path


@pytest.mark.parametrize(
    "make", [a_file, below_a_file, with_folders_in_place_of_files, of_the_kernel, read_only]
)
def test_out_is_tried_before_training(make, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "load_once", lambda _: pytest.fail("too late"))
    with pytest.raises(SystemExit) as stop:
        run(folder, make(tmp_path / "out"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "can't be written (" in error
    assert "--out has to name a folder that can" in error


def test_out_that_goes_away_during_training(folder, tmp_path, monkeypatch, capsys):
    train = mnist.train

    def last(*arguments):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return train(*arguments)

    monkeypatch.setattr(mnist, "train", last)
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "out", "--epochs", "1")
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert f"{tmp_path / 'out' / mnist.RESULTS} can't be written (No such file" in output.err
    assert "accuracy, %" in output.out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "not enough memory: choose a smaller --hidden or --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
    ],
    ids=repr,
)
def test_training_that_ends_early(error, code, message, folder, tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise error

    monkeypatch.setattr(mnist, "train", stopped)
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path)
    assert stop.value.code == code
    assert message in capsys.readouterr().err


def test_an_error_of_the_code_is_not_hidden(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "build", lambda *_: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        run(folder, tmp_path)


def test_an_output_that_lacks_a_character(folder, tmp_path, monkeypatch):
    """The table has one beyond ASCII, and is printed after all training."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    run(folder, tmp_path, "--epochs", "1", "--hidden", "8", "--seeds", "0", "1")
    sys.stdout.flush()
    assert b"mean ? standard deviation" in sys.stdout.buffer.getvalue()


def test_a_folders_name_is_no_formula(tmp_path):
    """In the plot's title, dollars would make it one."""
    run(write(tmp_path / "a$x_$"), tmp_path, "--epochs", "1", "--hidden", "8")
    assert (tmp_path / mnist.PLOT).exists()


def test_trying_out_leaves_nothing_and_loses_nothing(tmp_path):
    (tmp_path / "old").write_text("mine")
    outputs.prepare(tmp_path, "old", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "mine"


@pytest.mark.parametrize("module", ["tqdm", "matplotlib.figure"])
def test_packages_are_tried_before_training(module, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(mnist, "load_once", lambda _: pytest.fail("too late"))
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path)
    assert stop.value.code == 2
    assert "pip install -e '.[mnist]'" in capsys.readouterr().err


def test_drawing_is_tried_before_training(folder, tmp_path, monkeypatch, capsys):
    """It imports more, and asks for the programs that a matplotlibrc names."""
    from matplotlib.figure import Figure

    def savefig(*arguments, **options):
        raise RuntimeError("Failed to process string with tex because\nlatex could not be found")

    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr(mnist, "load_once", lambda _: pytest.fail("too late"))
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path)
    assert stop.value.code == 2
    assert "matplotlib can't draw (Failed to process string with tex because latex could" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("content", ["raise SystemExit(3)", "raise RuntimeError", "syntax error"])
def test_packages_that_are_broken(content, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        outputs.OutputError, match=r"broken doesn't import \(\w.*: pip install -e '.\[mnist\]'"
    ):
        outputs.require("broken", "mnist")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "tkagg"])
def test_a_notebooks_backend_is_no_obstacle(backend, tmp_path):
    """It is read when matplotlib is first imported: in a process of its own."""
    script = (
        "import os; from benchmarks import outputs\n"
        f"outputs.new_figure().savefig({str(tmp_path / 'plot.png')!r})\n"
        "print(os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.stdout == f"{backend}\n", process.stderr
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_no_script_imports_matplotlib_by_itself():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert path.name == "outputs.py" or not re.search(
            r"import matplotlib|from matplotlib", path.read_text()
        )


def test_help_says_what_the_defaults_reproduce(capsys):
    with pytest.raises(SystemExit):
        mnist.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "The defaults reproduce the comparison in docs/mnist.md for the first of its seeds" in text
    committed = json.loads((ROOT / "benchmarks/results/mnist-cpu/activation_comparison.json").read_text())
    defaults = vars(mnist.parser().parse_args([]))
    for name in ("epochs", "batch_size", "hidden", "p", "lr", "backend"):
        assert committed["arguments"][name] == defaults[name]
    assert f"--seeds {' '.join(map(str, committed['seeds']))} reproduces the whole" in text
    assert committed["seeds"][:1] == defaults["seeds"]
    assert committed["data"]["train"] == 60_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p", "1.5"], "argument --p: 1.5 is not between 0 and 1"),
        (["--epochs", "0"], "argument --epochs: 0 is not at least 1"),
        (["--lr", "0"], "argument --lr: 0 is not above 0"),
        (["--lr", "nan"], "argument --lr: nan is not above 0"),
        (["--lr", "inf"], "argument --lr: inf is above 2147483647"),
        (["--hidden", "1" + 30 * "0"], f"argument --hidden: 1{30 * '0'} is above 2147483647"),
        (["--batch-size", "2147483648"], "argument --batch-size: 2147483648 is above 2147483647"),
        (["--seeds", "0", "2147483648"], "argument --seeds: 2147483648 is above 2147483647"),
        (["--device", "meta"], "argument --device: meta: Tensor.item() cannot be called on meta tensors"),
        (["--device", "hpu"], "argument --device: hpu: No module named 'torch.hpu'"),
        (["--batch-size", "x"], "argument --batch-size: invalid int value: 'x'"),
        (["--device", "gpu"], "argument --device: gpu: Expected one of"),
        (["--seeds", "1", "1"], "argument --seeds: a seed stands twice"),
        (["--backend", "jax"], "argument --backend: invalid choice: 'jax'"),
    ],
)
def test_bad_arguments(arguments, message, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
