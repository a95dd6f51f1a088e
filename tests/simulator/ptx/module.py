"""A PTX module: its kernels, their C text, the shared object."""

import ctypes
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import arithmetic, bits, control, convert, memory
from .emit import c_text
from .kernel import Kernel

_PRELUDE = (Path(__file__).parent / "prelude.c").read_text()
# Without optimisation: to compile a kernel costs more than to run it on the tests' sizes.
_COMPILER = ["gcc", "-O0", "-std=gnu11", "-shared", "-fPIC", "-w"]
_C_AS_PTX = ["-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing"]
# Each is a function of the kernel, the modifiers and the operands, by the instruction's base name.
_INSTRUCTIONS = {
    **arithmetic.INSTRUCTIONS,
    **bits.INSTRUCTIONS,
    **control.INSTRUCTIONS,
    **convert.INSTRUCTIONS,
    **memory.INSTRUCTIONS,
}
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{;]*\{", re.DOTALL)


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, parameters and body of each kernel."""
    at = 0
    while match := _ENTRY.search(text, at):
        depth, at = 1, match.end()
        while depth:
            brace = re.compile(r"[{}]").search(text, at)
            depth += 1 if brace[0] == "{" else -1
            at = brace.end()
        yield match[1], match[2], text[match.end() : at - 1]


class Module:
    """The kernels of a PTX text, by name."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.DOTALL)
        text = re.sub(r"^\s*\.(loc|file)\b[^\n]*$", "", text, flags=re.MULTILINE)
        # Shared memory that the launch sizes begins at 0.
        external = re.findall(r"\.extern\s+\.shared[^;]*?([\w$]+)\s*\[\s*\]\s*;", text)
        variables = dict.fromkeys(external, "0ull")
        self.kernels = {
            name: Kernel(name, parameters, body, variables, _INSTRUCTIONS)
            for name, parameters, body in _entries(text)
        }
        if not self.kernels:
            raise ValueError("no kernel in the module")

    def c_text(self) -> str:
        return _PRELUDE + "\n".join(c_text(kernel) for kernel in self.kernels.values())

    def build(self, path: Path) -> None:
        """Write the shared object atomically, so that other processes never see a part of it."""
        native = ["-mfma", "-mf16c"] if " fma " in Path("/proc/cpuinfo").read_text() else []
        # Another thread may be building the same.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, made = Path(folder, "kernel.c"), Path(folder, "kernel.so")
            source.write_text(self.c_text())
            subprocess.run([*_COMPILER, *_C_AS_PTX, *native, "-o", made, source, "-lm"], check=True)
            made.rename(path)


def launch(
    module: Module,
    library: ctypes.CDLL,
    name: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[int | float],
    ranges: Sequence[tuple[int, int]] = (),
) -> None:
    """Run a kernel. `ranges` lists the memory that it may access: first address, and bytes.

    Raises:
        RuntimeError: it accessed something else, or a misaligned address.
    """
    kernel = module.kernels[name]
    buffer = bytearray(kernel.size + 16)
    for (offset, size), argument in zip(kernel.parameters, arguments, strict=True):
        if isinstance(argument, float):
            packed = struct.pack("<f" if size == 4 else "<d", argument)
        else:
            packed = (argument & (1 << 8 * size) - 1).to_bytes(size, "little")
        buffer[offset : offset + size] = packed
    addresses = ctypes.c_uint64 * max(1, len(ranges))
    low, high = addresses(*(a for a, _ in ranges)), addresses(*(a + size for a, size in ranges))
    library.memory(len(ranges), low, high)
    x, y, z = (*grid, 1, 1)[:3]
    parameters = (ctypes.c_uint8 * len(buffer)).from_buffer(buffer)
    blocks, threads = (ctypes.c_uint32 * 5)(x, y, z, 0, x), (ctypes.c_uint32 * 3)(*(*block, 1, 1)[:3])
    getattr(library, f"launch_{kernel.name}")(parameters, blocks, threads)
    library.fault.restype = ctypes.POINTER(ctypes.c_uint64)
    kind, address, size = library.fault()[:3]
    if kind:
        verb = "read" if kind == 1 else "written"
        raise RuntimeError(
            f"{name}: {size} bytes {verb} at {address:#x}, outside of its ranges or misaligned"
        )
