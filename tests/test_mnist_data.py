"""Where the digits come from: torchvision's download, a folder, the sample; and their damages."""

import dataclasses
import gzip
import math
import struct
import sys
import types

import pytest

pytest.importorskip("matplotlib", reason="benchmarks/mnist.py plots: needs the extra `mnist`")
pytest.importorskip("tqdm", reason="benchmarks/mnist.py shows its progress: needs the extra `mnist`")

from tiny_mnist import FILES, run, write

from benchmarks import mnist, mnist_data


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """An empty folder in place of the downloads'."""
    path = tmp_path / "downloads" / "MNIST" / "raw"
    monkeypatch.setattr(mnist_data, "DOWNLOADS", dataclasses.replace(mnist_data.DOWNLOADS, path=path))
    return path


def test_no_network(downloads, monkeypatch, capsys):
    monkeypatch.setattr(mnist_data, "_download", lambda: "no route to host")
    assert len(mnist_data.load().train_labels) == 10_000
    assert capsys.readouterr().out == (
        "MNIST can't be downloaded (no route to host): "
        "using the sample of 12,000 of its digits in mnist_sample/.\n"
    )


BROKEN = [
    "raise ImportError('no such module')",
    "raise RuntimeError('operator torchvision::nms does not exist')",
    "raise AttributeError('module torch has no attribute _custom_ops')",
    "raise OSError('undefined symbol')",
    "raise SystemExit(3)",
    "syntax error",
    "class Own(BaseException): pass\nraise Own",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_torchvision_is_as_good_as_none(content, downloads, tmp_path, monkeypatch, capsys):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(content)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(mnist_data.load().train_labels) == 10_000
    assert "torchvision doesn't import: " in capsys.readouterr().out


@pytest.mark.parametrize("error", [EOFError, SystemExit])
def test_a_download_that_fails_anyhow(error, downloads, monkeypatch, capsys):
    class MNIST:
        def __init__(self, root, download):
            raise error("Compressed file ended")

    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = MNIST
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert len(mnist_data.load().train_labels) == 10_000
    assert "(Compressed file ended)" in capsys.readouterr().out


def test_downloaded_data_needs_no_torchvision(folder, downloads, monkeypatch):
    """Of the sizes that the fixture has, for MNIST's own files aren't here."""
    downloads.parents[1].mkdir()
    (folder / "MNIST").rename(downloads.parent)
    monkeypatch.setattr(mnist_data, "DOWNLOADS", dataclasses.replace(mnist_data.DOWNLOADS, whole=False))
    monkeypatch.setattr(mnist_data, "_download", lambda: pytest.fail("all is there"))
    assert len(mnist_data.load().train_labels) == 60


def html(path):
    path.write_text("<!DOCTYPE html><title>404 Not Found</title>")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def folder_of_that_name(path):
    path.unlink()
    path.mkdir()


def packed_and_truncated(path):
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()


def packed_html(path):
    path.with_name(path.name + ".gz").write_text("<html>")
    path.unlink()


def of_another_shape(path):
    """CIFAR's images; letters for labels."""
    content = path.read_bytes()
    if "images" in path.name:
        content = content[:4] + struct.pack(">3I", 49, 32, 30) + bytes(49 * 960)
    path.write_bytes(content[:-1] + b"\x0a")


def of_another_size(path):
    content = path.read_bytes()
    step = 784 if "images" in path.name else 1
    path.write_bytes(
        content[:4] + struct.pack(">I", struct.unpack(">I", content[4:8])[0] - 1) + content[8:-step]
    )


def of_another_set(path):
    """Fashion-MNIST has MNIST's names and sizes."""
    (file,) = [file for file in mnist_data.FILES if file.name == path.name]
    shape = (file.items, 28, 28)[: file.dimensions]
    head = bytes((0, 0, 8, file.dimensions)) + struct.pack(f">{file.dimensions}I", *shape)
    path.write_bytes(head + bytes(math.prod(shape)))


DAMAGES = [
    *(html, empty, truncated, longer, folder_of_that_name, packed_and_truncated, packed_html),
    *(of_another_shape, of_another_size, of_another_set),
]


@pytest.mark.parametrize("by_default", [True, False], ids=["default folder", "--data"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_data_is_a_clear_error(
    damage, name, by_default, folder, downloads, tmp_path, monkeypatch, capsys
):
    raw = folder / "MNIST" / "raw"
    damage(raw / name)
    if by_default:
        downloads.parents[1].mkdir()
        (folder / "MNIST").rename(downloads.parent)
        # The fixture's files aren't the whole of MNIST; those before the damaged one have to pass.
        monkeypatch.setattr(mnist_data, "DOWNLOADS", dataclasses.replace(mnist_data.DOWNLOADS, whole=False))
    data = [] if by_default else ["--data", str(folder)]
    with pytest.raises(SystemExit) as stop:
        mnist.main([*data, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert str(downloads if by_default else raw) in error
    assert name in error
    assert (damage is of_another_set) == ("SHA-256" in error)
    assert ("Delete " if by_default else "or leave out --data") in error
    assert "Traceback" not in error


def test_the_download_has_to_be_the_whole_of_mnist(folder, downloads, capsys):
    downloads.parents[1].mkdir()
    (folder / "MNIST").rename(downloads.parent)
    with pytest.raises(mnist_data.DataError, match="train-images-idx3-ubyte is no file of MNIST, or damaged"):
        mnist_data.load()


@pytest.mark.parametrize("name", FILES)
def test_more_digits_than_mnist_has(name, tmp_path):
    """EMNIST's have the same shape."""
    (file,) = [file for file in mnist_data.FILES if file.name == name]
    sizes = (file.items + 1, 28, 28)[: file.dimensions]
    head = bytes((0, 0, 8, file.dimensions)) + struct.pack(f">{file.dimensions}I", *sizes)
    (tmp_path / name).write_bytes(head + bytes(math.prod(sizes)))
    with pytest.raises(mnist_data.DataError, match=f"{name} is no file of MNIST: shape .{file.items + 1},"):
        mnist_data._read_idx(mnist_data.Folder(tmp_path, "", ""), file)


@pytest.mark.parametrize("name", [name for name in FILES if "images" in name])
def test_images_without_a_drawing(name, folder):
    path = folder / "MNIST" / "raw" / name
    content = path.read_bytes()
    path.write_bytes(content[:16] + bytes([7]) * (len(content) - 16))
    with pytest.raises(mnist_data.DataError, match=f"{path} is no file of MNIST: all its pixels are 7"):
        mnist_data.load(folder)


def test_a_missing_file(folder, tmp_path, capsys):
    (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path)
    assert stop.value.code == 2
    assert "t10k-images-idx3-ubyte is missing" in capsys.readouterr().err
