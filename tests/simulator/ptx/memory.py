"""Moves, loads, stores, atomics."""

import re

from .kernel import Kernel, elements
from .kinds import UnsupportedError, as_integer, bits_of

_SPACES = ("global", "param", "local", "shared", "const")
_VECTORS = ("v2", "v4", "v8")
# Of caching, scope and order: threads run one after the other.
_IGNORED = {
    "nc", "ca", "cg", "cs", "cv", "wb", "wt", "relaxed", "volatile", "weak", "gpu", "sys", "cta", "cluster",
    "acquire", "release",
}  # fmt: skip


def move(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    (kind,) = modifiers
    to, source = operands
    n = bits_of(kind)
    if source.startswith("{"):  # packs
        parts = elements(source)
        each = n // len(parts)
        value = " | ".join(
            f"(uint128_t)(uint{each}_t){kernel.raw(p)} << {i * each}" for i, p in enumerate(parts)
        )
        return kernel.put(to, f"u{n}", value)
    if to.startswith("{"):  # unpacks
        parts = elements(to)
        each = n // len(parts)
        puts = "".join(kernel.put(p, f"u{each}", f"whole >> {i * each}") for i, p in enumerate(parts))
        return f"{{ uint{n}_t whole = {kernel.raw(source)}; {puts} }}"
    if kind == "pred":
        return kernel.put(to, kind, kernel.get(source, kind))
    return kernel.put(to, f"u{n}", kernel.raw(source))


def convert_address(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    base = ""
    if "shared" in modifiers:
        base = f" {'-' if 'to' in modifiers else '+'} (uint64_t)smem_"
    return kernel.put(operands[0], "u64", kernel.raw(operands[1]) + base)


class _Access:
    """The elements and the address of a load or a store.

    Attributes:
        kind: of each element.
        unsigned: C's type for its bits.
        count: of elements.
        pointer: a C expression.
    """

    def __init__(self, kernel: Kernel, modifiers: list[str], address: str, store: bool) -> None:
        self.kind = modifiers[-1]
        self.unsigned = f"uint{bits_of(self.kind)}_t"
        self.count = 1
        space = "generic"
        for modifier in modifiers[:-1]:
            if modifier.split("::")[0] in _SPACES:
                space = modifier.split("::")[0]
            elif modifier in _VECTORS:
                self.count = int(modifier[1:])
            elif modifier not in _IGNORED and not re.match(r"L[12]::", modifier):
                raise UnsupportedError(modifier)
        self.bytes = bits_of(self.kind) // 8 * self.count
        place = kernel.address(address)
        if space in ("global", "generic"):
            self.pointer = f"global({place}, {self.bytes}, {int(store)})"
        elif space == "shared":
            self.pointer = f"(void *)((uint64_t)smem_ + {place})"
        else:
            self.pointer = f"(void *){place}"


def load(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    access = _Access(kernel, modifiers, operands[1], store=False)
    kind = access.kind if access.kind[0] == "s" else f"u{bits_of(access.kind)}"
    puts = "".join(
        kernel.put(part, kind, f"at[{i}]") for i, part in enumerate(elements(operands[0])) if part != "_"
    )
    return f"{{ {access.unsigned} at[{access.count}]; memcpy(at, {access.pointer}, sizeof at); {puts} }}"


def store(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    access = _Access(kernel, modifiers, operands[0], store=True)
    values = ", ".join(f"({access.unsigned}){kernel.raw(part)}" for part in elements(operands[1]))
    return (
        f"{{ {access.unsigned} at[{access.count}] = {{{values}}}; memcpy({access.pointer}, at, sizeof at); }}"
    )


_OPERATIONS = {
    "add": "{old} + {new}",
    "and": "{old} & {new}",
    "cas": "{old} == {new} ? {other} : {old}",
    "exch": "{new}",
    "max": "{old} > {new} ? {old} : {new}",
    "min": "{old} < {new} ? {old} : {new}",
    "or": "{old} | {new}",
    "xor": "{old} ^ {new}",
}


def atomic(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    to, address, value, *other = operands
    operation = next(modifier for modifier in modifiers if modifier in _OPERATIONS)
    access = _Access(kernel, [m for m in modifiers if m != operation], address, store=True)
    kind, unsigned = access.kind, access.unsigned
    floating = kind in ("f32", "f64")
    result = _OPERATIONS[operation].format(
        old=f"{kind}(old)" if floating else as_integer(kind, "old"),
        new=kernel.get(value, kind),
        other=kernel.get(other[0], kind) if other else "0",
    )
    result = f"to_{kind}({result})" if floating else result
    back = "" if to == "_" else kernel.put(to, f"u{bits_of(kind)}", "old")
    return (
        f"{{ {unsigned} old, new; void *p = {access.pointer}; memcpy(&old, p, sizeof old); new = {result};"
        f" memcpy(p, &new, sizeof new); {back} }}"
    )


def reduce(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    return atomic(kernel, modifiers, ["_", *operands])


def cache_policy(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    """Do nothing: the instruction is a hint for a cache, and loads and stores here have none."""
    return ""


INSTRUCTIONS = {
    "atom": atomic,
    "createpolicy": cache_policy,
    "cvta": convert_address,
    "ld": load,
    "mov": move,
    "red": reduce,
    "st": store,
}
