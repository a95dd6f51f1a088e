"""MNIST as two tensors a split: torchvision's download, a folder of IDX files, or the sample here."""

import contextlib
import gzip
import hashlib
import io
import math
import os
import socket
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

_HERE = Path(__file__).parent
_TIMEOUT = 10.0  # seconds without an answer from a mirror


class DataError(Exception):
    """The data can't be used; the message names the file, the reason and the cure."""


@dataclass(frozen=True)
class Digits:
    """Images as float32 [n, 784], normalised to the training set's mean and deviation; labels int64 [n]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str

    def to(self, device: torch.device) -> "Digits":
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "source"}
        return replace(self, **tensors)


@dataclass(frozen=True)
class File:
    """One of MNIST's four files, unpacked: how many items it has, and their digest."""

    name: str
    dimensions: int
    items: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """The folder of the four files, a name for it in messages, and the cure for damaged files."""

    path: Path
    source: str
    cure: str
    whole: bool = False  # all 70,000 digits have to be there

    def error(self, problem: str) -> DataError:
        return DataError(f"{problem}. {self.cure}")


TRAIN_IMAGES = File(
    "train-images-idx3-ubyte", 3, 60_000, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
)
TRAIN_LABELS = File(
    "train-labels-idx1-ubyte", 1, 60_000, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
)
TEST_IMAGES = File(
    "t10k-images-idx3-ubyte", 3, 10_000, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
)
TEST_LABELS = File(
    "t10k-labels-idx1-ubyte", 1, 10_000, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

DOWNLOADS = Folder(
    _HERE / "data" / "MNIST" / "raw",
    "MNIST, downloaded by torchvision",
    f"Delete {_HERE / 'data'} and run again: MNIST is then downloaded anew",
    whole=True,
)
SAMPLE = Folder(
    _HERE / "mnist_sample",
    "the embedded sample of MNIST",
    "It belongs to the repository: git checkout benchmarks/mnist_sample",
)


def load(directory: Path | None = None) -> Digits:
    """MNIST from `directory` in torchvision's layout, else downloaded, else the embedded sample.

    Raises:
        DataError: `directory` lacks a file; or a file there or of the download is damaged or of other data.
    """
    if directory is not None:
        cure = "Put MNIST's own file there, or leave out --data: MNIST is then downloaded"
        return _read(Folder(directory / "MNIST" / "raw", f"MNIST in {directory}/", cure))
    failure = None if _is_complete(DOWNLOADS) else _download()
    if failure is None:
        return _read(DOWNLOADS)
    print(
        f"MNIST can't be downloaded ({failure}): "
        f"using the sample of 12,000 of its digits in {SAMPLE.path.name}/."
    )
    return sample()


def sample() -> Digits:
    """12,000 digits of MNIST that lie in the repository."""
    return _read(SAMPLE)


def _is_complete(folder: Folder) -> bool:
    return all(os.path.exists(path) or os.path.exists(_packed(path)) for path in _paths(folder))


def _paths(folder: Folder) -> list[Path]:
    return [folder.path / file.name for file in FILES]


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def _download() -> str | None:
    """Have torchvision download the missing files; return None, or the reason for a failure."""
    try:
        from torchvision.datasets import MNIST
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # built for another torch, it may raise anything
        return f"torchvision doesn't import: {_reason(error)}"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            MNIST(str(DOWNLOADS.path.parents[1]), download=True)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the network, the disk or an archive
        return _reason(error)
    finally:
        socket.setdefaulttimeout(timeout)
    return None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(":") or type(error).__name__


def _read(folder: Folder) -> Digits:
    train_images, train_labels = _split(folder, TRAIN_IMAGES, TRAIN_LABELS)
    test_images, test_labels = _split(folder, TEST_IMAGES, TEST_LABELS)
    mean, deviation = train_images.mean(), train_images.std()
    return Digits(
        *((train_images - mean) / deviation, train_labels),
        *((test_images - mean) / deviation, test_labels),
        folder.source,
    )


def _split(folder: Folder, images_file: File, labels_file: File) -> tuple[Tensor, Tensor]:
    images, labels = _read_idx(folder, images_file), _read_idx(folder, labels_file)
    if len(images) != len(labels):
        paths = f"{folder.path / images_file.name} and {labels_file.name}"
        raise folder.error(f"{paths} differ: {len(images)} images, {len(labels)} labels")
    return images.flatten(1).float() / 255, labels.long()


def _read_idx(folder: Folder, file: File) -> Tensor:
    """An IDX file of unsigned bytes, plain or gzipped: magic, sizes (big endian), then the bytes."""
    path = folder.path / file.name
    try:
        if not path.exists() and _packed(path).exists():
            path = _packed(path)
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise folder.error(f"{path} is missing (or {path.name}.gz)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise folder.error(f"{path} can't be read: {error}") from None
    start = 4 + 4 * file.dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, file.dimensions)):
        raise folder.error(
            f"{path} is damaged: no IDX file of unsigned bytes in {file.dimensions} dimensions"
        )
    shape = struct.unpack(f">{file.dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise folder.error(
            f"{path} is damaged: {len(content) - start} bytes, but {shape} has {math.prod(shape)}"
        )
    if not 0 < shape[0] <= file.items or shape[1:] not in ((), (28, 28)):
        raise folder.error(f"{path} is no file of MNIST: shape {shape}")
    if (folder.whole or shape[0] == file.items) and hashlib.sha256(content).hexdigest() != file.sha256:
        raise folder.error(f"{path} is no file of MNIST, or damaged: its SHA-256 differs")
    values = torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)
    if file.dimensions == 1 and values.max() > 9:
        raise folder.error(f"{path} is no file of MNIST: a label is {int(values.max())}, above 9")
    if file.dimensions == 3 and values.min() == values.max():
        raise folder.error(f"{path} is no file of MNIST: all its pixels are {int(values.max())}")
    return values
