"""A few digits in MNIST's files, and the comparison run on them."""

import gzip
import json
import struct
from pathlib import Path

from benchmarks import mnist, mnist_data

FILES = {
    "train-images-idx3-ubyte": (60, 28, 28),
    "train-labels-idx1-ubyte": (60,),
    "t10k-images-idx3-ubyte": (40, 28, 28),
    "t10k-labels-idx1-ubyte": (40,),
}


def write(folder: Path) -> Path:
    """The sample's first digits, in torchvision's layout."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape in FILES.items():
        content = gzip.decompress((mnist_data.SAMPLE.path / f"{name}.gz").read_bytes())
        start = 4 + 4 * len(shape)
        n = shape[0] * (784 if len(shape) == 3 else 1)
        head = content[:4] + struct.pack(f">{len(shape)}I", *shape)
        (raw / name).write_bytes(head + content[start : start + n])
    return folder


def run(folder, out, *arguments):
    mnist.main(["--data", str(folder), "--out", str(out), "--device", "cpu", *arguments])
    return json.loads((out / "activation_comparison.json").read_text())
