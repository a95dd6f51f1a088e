"""cvt."""

from .kernel import Kernel
from .kinds import FLOATS, HALVES, UnsupportedError, bits_of, check_modifiers

_TO_INTEGERS = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


def convert(kernel: Kernel, modifiers: list[str], operands: list[str]) -> str:
    *modifiers, to, source = modifiers
    if to.endswith("x2"):
        return _to_pair(kernel, modifiers, to, source, operands)
    check_modifiers(modifiers, "rn", "sat", "ftz", *_TO_INTEGERS)
    value = kernel.get(operands[1], source)
    if source == "f32" and "ftz" in modifiers:
        value = f"ftz({value})"
    rounding = next((modifier for modifier in modifiers if modifier in _TO_INTEGERS), None)
    if rounding:
        value = f"{_TO_INTEGERS[rounding]}({value})"
    if to in FLOATS and source in FLOATS:
        narrows = bits_of(to) < bits_of(source) and not rounding
        if narrows and "rn" not in modifiers:
            raise UnsupportedError("a rounding other than rn")
        value = f"sat({value})" if "sat" in modifiers else value
        value = f"ftz({value})" if "ftz" in modifiers and to == "f32" else value
    elif to in FLOATS:
        value = _from_integer(modifiers, to, source, value)
    elif source in FLOATS:
        if not rounding:
            raise UnsupportedError("no rounding to an integer")
        wide = int(source == "f64" or bits_of(to) == 64)
        value = f"float_to_{to[0]}({value}, {bits_of(to)}, {wide})"
    elif "sat" in modifiers:
        raise UnsupportedError("sat between integers")
    return kernel.put(operands[0], to, value)


def _to_pair(kernel: Kernel, modifiers: list[str], to: str, source: str, operands: list[str]) -> str:
    """cvt.rn.bf16x2.f32 d, high, low."""
    if modifiers != ["rn"] or source != "f32":
        raise UnsupportedError(".".join([*modifiers, to, source]))
    high, low = (f"(uint32_t)to_{to[:-2]}({kernel.get(operand, source)})" for operand in operands[1:])
    return kernel.put(operands[0], "u32", f"{high} << 16 | {low}")


def _from_integer(modifiers: list[str], to: str, source: str, value: str) -> str:
    if "rn" not in modifiers:
        raise UnsupportedError("a rounding other than rn")
    if to in HALVES and bits_of(source) > 32:
        raise UnsupportedError("a half from 64 bits: would be rounded twice")
    return f"({'float' if to == 'f32' else 'double'}){value}"


INSTRUCTIONS = {"cvt": convert}
