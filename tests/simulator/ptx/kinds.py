"""PTX's types by their names: u32, bf16x2, pred."""

import re

HALVES = ("f16", "bf16")
FLOATS = ("f32", "f64", *HALVES)


class UnsupportedError(ValueError):
    """An instruction, or a form of one, that isn't covered; the message is its text."""


def bits_of(kind: str) -> int:
    if kind == "pred":
        return 8
    match = re.fullmatch(r"(?:bf|[busf])(\d+)(x2)?", kind)
    if not match:
        raise UnsupportedError(f"type {kind}")
    return int(match[1]) * (2 if match[2] else 1)


def as_integer(kind: str, value: str) -> str:
    """A C expression, cast to the integer type."""
    if kind in FLOATS or kind.endswith("x2"):
        raise UnsupportedError(f"{kind} as an integer")
    return f"(({'' if kind[0] == 's' else 'u'}int{bits_of(kind)}_t)({value}))"


def check_modifiers(modifiers: list[str], *allowed: str) -> None:
    others = set(modifiers) - set(allowed)
    if others:
        raise UnsupportedError("." + ".".join(sorted(others)))
