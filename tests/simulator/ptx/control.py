"""Jumps, barriers, and the exchange of values between the threads of a warp.

A thread shows a value in `exchange`, waits, and reads the others'. Two rows take turns, so that no thread
overwrites a value that a slower one still has to read. Warps without convergence aren't modelled.
"""

from .kernel import Kernel, c_name, elements
from .kinds import UnsupportedError

_READ = "exchange[(*turn - 1) & 1]"


def _show(kernel: Kernel, value: str) -> str:
    return f"exchange[(*turn)++ & 1][warp * 32 + t->laneid] = {value}; {kernel.wait()}"


def branch(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    return f"goto L{c_name(operands[0])};"


def leave(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    return "return 0;"


def barrier(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    if modifiers[0] not in ("sync", "warp"):
        raise UnsupportedError(".".join(modifiers))
    return kernel.barrier()


def shuffle(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    _, mode, _ = modifiers
    to, value, lane, clamp, _ = operands
    to, _, valid = (part.strip() for part in to.partition("|"))
    lane, clamp = kernel.get(lane, "u32"), kernel.get(clamp, "u32")
    source = {
        "idx": f"(t->laneid & segment) | ({lane} & 31 & ~segment)",
        "bfly": f"t->laneid ^ {lane}",
        "up": f"(int)t->laneid - (int){lane}",
        "down": f"t->laneid + {lane}",
    }[mode]
    inside = "j >= (int)end" if mode == "up" else "j <= (int)end"
    return (
        f"{_show(kernel, kernel.raw(value))} {{ uint32_t segment = {clamp} >> 8 & 31, c = {clamp} & 31;"
        f" uint32_t end = (t->laneid & segment) | (c & ~segment); int j = {source}, ok = {inside};"
        + kernel.put(to, "u32", f"{_READ}[warp * 32 + ((ok ? j : t->laneid) & 31)]")
        + (kernel.put(valid, "pred", "ok") if valid else "")
        + " }"
    )


_REDUCTIONS = {
    "add": "sum + other",
    "and": "sum & other",
    "max": "other > sum ? other : sum",
    "min": "other < sum ? other : sum",
    "or": "sum | other",
    "xor": "sum ^ other",
}


def warp_reduce(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    _, operation, kind = modifiers
    to, value, members = operands
    number = "int32_t" if kind[0] == "s" else "uint32_t"
    return (
        f"{_show(kernel, kernel.raw(value))} {{ {number} sum = 0; int any = 0;"
        f" for (int i = 0; i < 32; i++) if ({kernel.get(members, 'u32')} >> i & 1) {{"
        f" {number} other = {_READ}[warp * 32 + i]; sum = any ? {_REDUCTIONS[operation]} : other; any = 1; }}"
        f" {kernel.put(to, 'u32', 'sum')} }}"
    )


def _matrix(kernel: Kernel, modifiers: list[str], address: str) -> tuple[str, str]:
    """8x8 matrices of 16 bits in shared memory: lane 8 k + r shows the address of matrix k's row r."""
    if modifiers[:3] != ["sync", "aligned", "m8n8"] or "trans" in modifiers or modifiers[-1] != "b16":
        raise UnsupportedError(".".join(modifiers))
    row = f"{_READ}[warp * 32 + 8 * {{}} + t->laneid / 4]"
    return _show(kernel, kernel.address(address)), f"smem_ + {row} + t->laneid % 4 * 4"


def store_matrix(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    shown, place = _matrix(kernel, modifiers, operands[0])
    parts = enumerate(elements(operands[1]))
    return shown + " ".join(f"memcpy({place.format(k)}, &{kernel.raw(part)}, 4);" for k, part in parts)


def load_matrix(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    shown, place = _matrix(kernel, modifiers, operands[1])
    parts = enumerate(elements(operands[0]))
    return shown + " ".join(f"memcpy(&{kernel.raw(part)}, {place.format(k)}, 4);" for k, part in parts)


INSTRUCTIONS = {
    "bar": barrier,
    "barrier": barrier,
    "bra": branch,
    "exit": leave,
    "ldmatrix": load_matrix,
    "redux": warp_reduce,
    "ret": leave,
    "shfl": shuffle,
    "stmatrix": store_matrix,
}
