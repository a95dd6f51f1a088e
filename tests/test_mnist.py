"""The MNIST comparison on a tiny run, and its errors."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="benchmarks/mnist.py plots: needs the extra `mnist`")
pytest.importorskip("tqdm", reason="benchmarks/mnist.py shows its progress: needs the extra `mnist`")

from benchmarks import mnist, mnist_data

FILES = {
    "train-images-idx3-ubyte": (60, 28, 28),
    "train-labels-idx1-ubyte": (60,),
    "t10k-images-idx3-ubyte": (40, 28, 28),
    "t10k-labels-idx1-ubyte": (40,),
}


@pytest.fixture
def folder(tmp_path):
    """The sample's first digits, in torchvision's layout."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape in FILES.items():
        content = gzip.decompress((mnist_data._SAMPLE / f"{name}.gz").read_bytes())
        start = 4 + 4 * len(shape)
        n = shape[0] * (784 if len(shape) == 3 else 1)
        head = content[:4] + struct.pack(f">{len(shape)}I", *shape)
        (raw / name).write_bytes(head + content[start : start + n])
    return tmp_path


def run(folder, out, *arguments):
    mnist.main(["--data", str(folder), "--out", str(out), "--device", "cpu", *arguments])
    return json.loads((out / "activation_comparison.json").read_text())


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
        assert [epoch["epoch"] for epoch in run_["epochs"]] == [1, 2]
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
    before = mnist.evaluate(net, digits)[1]
    assert before == pytest.approx(3 / 8)


def test_evaluation_drops_nothing_and_training_goes_on(folder):
    digits = mnist_data.load(folder)
    net = mnist.build("ReLU", 64, 0.9, "fused")
    assert mnist.evaluate(net, digits) == mnist.evaluate(net, digits)
    assert net.training
    net.eval()
    accuracy = (net(digits.test_images).argmax(1) == digits.test_labels).float().mean().item()
    assert mnist.evaluate(net, digits)[0] == pytest.approx(100 * accuracy)


@pytest.mark.parametrize(
    "option", [("--p", "0"), ("--lr", "0.01"), ("--hidden", "9"), ("--batch-size", "20")]
)
def test_options_count(option, folder, tmp_path):
    runs = [run(folder, tmp_path, "--epochs", "1", *more)["runs"] for more in ((), option)]
    for one, other in zip(*runs, strict=True):
        assert one["epochs"] != other["epochs"]


def test_the_sample_is_whole():
    digits = mnist_data._read(mnist_data._SAMPLE, "sample")
    assert digits.train_images.shape == (10_000, 784)
    assert digits.test_labels.shape == (2_000,)
    assert set(digits.train_labels.tolist()) == set(range(10))


def test_no_network(monkeypatch, capsys):
    monkeypatch.setattr(mnist_data, "_download", lambda: "no route to host")
    assert len(mnist_data.load().train_labels) == 10_000
    assert capsys.readouterr().out == (
        "MNIST can't be downloaded (no route to host): "
        "using the sample of 12,000 of its digits in mnist_sample/.\n"
    )


def damage_truncate(raw):
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    return "train-images-idx3-ubyte is damaged: 47039 bytes where"


def damage_magic(raw):
    path = raw / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\0\0" + path.read_bytes()[4:])
    return "t10k-labels-idx1-ubyte is damaged: it isn't an IDX file"


def damage_empty(raw):
    (raw / "train-labels-idx1-ubyte").write_bytes(b"")
    return "train-labels-idx1-ubyte is damaged"


def damage_missing(raw):
    (raw / "t10k-images-idx3-ubyte").unlink()
    return "t10k-images-idx3-ubyte is missing"


def damage_gzip(raw):
    path = raw / "train-images-idx3-ubyte"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(packed[:-20])
    return "train-images-idx3-ubyte can't be read"


def damage_labels(raw):
    path = raw / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    return "train has a label 10; labels are 0 to 9"


def damage_counts(raw):
    path = raw / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:4] + struct.pack(">I", 59) + path.read_bytes()[9:])
    return "train has 60 images and 59 labels"


DAMAGES = [
    damage_truncate,
    damage_magic,
    damage_empty,
    damage_missing,
    damage_gzip,
    damage_labels,
    damage_counts,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_data_is_a_clear_error(damage, folder, tmp_path, capsys):
    message = damage(folder / "MNIST" / "raw")
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p", "1.5"], "argument --p: 1.5 is not between 0 and 1"),
        (["--epochs", "0"], "argument --epochs: 0 is not at least 1"),
        (["--lr", "0"], "argument --lr: 0 is not above 0"),
        (["--lr", "nan"], "argument --lr: nan is not above 0"),
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
