"""MNIST as two tensors a split: torchvision's download, a folder of IDX files, or the sample here."""

import contextlib
import gzip
import http.client
import io
import math
import socket
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

_HERE = Path(__file__).parent
_DOWNLOADS = _HERE / "data"
_SAMPLE = _HERE / "mnist_sample"
_TIMEOUT = 10.0  # seconds without an answer from a mirror


class DataError(Exception):
    """The data can't be used; the message says which file and why."""


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


def load(directory: Path | None = None) -> Digits:
    """MNIST from `directory` in torchvision's layout, else downloaded, else the embedded sample.

    Raises:
        DataError: `directory` lacks a file, or a file is damaged.
    """
    if directory is not None:
        return _read(directory / "MNIST" / "raw", f"MNIST in {directory}/")
    failure = _download()
    if failure is None:
        return _read(_DOWNLOADS / "MNIST" / "raw", "MNIST, downloaded by torchvision")
    print(
        f"MNIST can't be downloaded ({failure}): using the sample of 12,000 of its digits in {_SAMPLE.name}/."
    )
    return sample()


def sample() -> Digits:
    """12,000 digits of MNIST that lie in the repository."""
    return _read(_SAMPLE, "the embedded sample of MNIST")


def _download() -> str | None:
    """Have torchvision download MNIST if it isn't there yet; why it could not, else None."""
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        return f"torchvision doesn't import: {error}"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            MNIST(str(_DOWNLOADS), download=True)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        return " ".join(str(error).split()).rstrip(":") or type(error).__name__
    finally:
        socket.setdefaulttimeout(timeout)
    return None


def _read(directory: Path, source: str) -> Digits:
    train_images, train_labels = _split(directory, "train")
    test_images, test_labels = _split(directory, "t10k")
    mean, deviation = train_images.mean(), train_images.std()
    return Digits(
        (train_images - mean) / deviation, train_labels, (test_images - mean) / deviation, test_labels, source
    )


def _split(directory: Path, name: str) -> tuple[Tensor, Tensor]:
    images = _read_idx(directory / f"{name}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(directory / f"{name}-labels-idx1-ubyte", dimensions=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{directory}: {name} images are {tuple(images.shape[1:])}, not 28 x 28")
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(f"{directory}: {name} has {len(images)} images and {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{directory}: {name} has a label {int(labels.max())}; labels are 0 to 9")
    return images.flatten(1).float() / 255, labels.long()


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of unsigned bytes, plain or gzipped: magic, sizes (big endian), then the bytes."""
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing (or {packed.name}); torchvision's layout is expected") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is damaged: it isn't an IDX file of unsigned bytes in {dimensions} dimensions"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is damaged: {len(content) - start} bytes where {shape} needs {math.prod(shape)}"
        )
    if len(content) == start:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)
