"""Docstrings and signatures of all fused functions and modules, filled in from a row."""

import inspect
from collections.abc import Iterable

from torch import Tensor

from .activations import Activation, Saves

_KEPT = {
    Saves.MASK: "one bit",
    Saves.ONE_BIT: "one bit",
    Saves.TWO_BITS: "two bits",
    Saves.INPUT: "one bit and `input`",
}
_RNG = """the mask. "eager": the mask that `torch.nn.Dropout` draws after the same `torch.manual_seed`.
        "fast": another mask, from 16 random bits per element, with `p` rounded to a multiple of 2**-16; on a
        CPU the same as "eager"."""
_P = "probability that an element is zeroed, in [0, 1]. The others are scaled by 1 / (1 - p)."


def signature(row: Activation, first: Iterable[inspect.Parameter], returns: object) -> inspect.Signature:
    """Return `(<first>, *, <the row's parameters>, rng="eager")`."""
    only = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter(
            parameter.name,
            only,
            default=parameter.default,
            annotation=float if parameter.choices is None else str,
        )
        for parameter in row.parameters
    ]
    rng = inspect.Parameter("rng", only, default="eager", annotation=str)
    return inspect.Signature([*first, *own, rng], return_annotation=returns)


def positional(
    name: str, default: object = inspect.Parameter.empty, annotation: object = inspect.Parameter.empty
) -> inspect.Parameter:
    """Return an argument that may be given by position."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


FUNCTION = (
    positional("input", annotation=Tensor),
    positional("p", 0.5, float),
    positional("training", True, bool),
    positional("inplace", False, bool),
)
MODULE = (positional("p", 0.5, float), positional("inplace", False, bool))


def of_function(row: Activation) -> str:
    """Return the docstring of a row's function."""
    return f"""Compute `{_composition(row)}` in one kernel each way. {_kept(row)}

Args:
    input: any shape and strides; float16, bfloat16, float32 or float64.
    p: {_P}
    training: apply dropout. If False, the result is the activation alone.
    inplace: write the result into `input`'s buffer.
{_parameters(row)}    rng: {_RNG}

Returns:
    A tensor of `input`'s shape, dtype and layout; `input` itself if `inplace`.

Raises:
    {_raises(row, "`training` or `inplace`")}
"""


def of_module(row: Activation, name: str) -> str:
    """Return the docstring of a row's module."""
    given = "".join(f", {p.name}=0.1" for p in row.parameters if p.default is inspect.Parameter.empty)
    return f"""Replace `{_modules(row)}` by one kernel each way. {_kept(row)}

Args:
    p: {_P} Default: 0.5.
    inplace: write the result into the input's buffer. Default: False.
{_parameters(row, defaults=True)}    rng: {_RNG} Default: "eager".

Shape:
    Input: any shape and strides; float16, bfloat16, float32 or float64. Output: the same shape, dtype and
        layout.

Raises:
    {_raises(row, "`inplace`")}

Examples:
    >>> layer = {name}(p=0.2{given})
    >>> output = layer(torch.randn(64, 128))
"""


def _composition(row: Activation) -> str:
    return "dropout(input, p)" if row.saves is Saves.MASK else f"dropout({row.name}(input), p)"


def _kept(row: Activation) -> str:
    kept = f"Forward keeps {_KEPT[row.saves]} per element for backward."
    if row.from_output is not None:
        kept += "\n\nIn place, forward keeps one bit and the output, which the next layer keeps anyway."
    if row.saves is Saves.MASK:
        return f"{kept}\n\nThere is no activation: act(x) = {row.formula}."
    return f"{kept}\n\n{row.name}(x) = {row.formula}"


def _modules(row: Activation) -> str:
    if row.saves is Saves.MASK:
        return "nn.Dropout(p)"
    arguments = ", ".join(f"{name}={name}" for name in row.names)
    first = row.name if row.module is None else f"nn.{row.module.__name__}({arguments})"
    return f"nn.Sequential({first}, nn.Dropout(p))"


def _parameters(row: Activation, defaults: bool = False) -> str:
    lines = []
    for parameter in row.parameters:
        required = parameter.default is inspect.Parameter.empty
        default = "" if not defaults or required else f" Default: {parameter.default!r}."
        lines.append(f"    {parameter.name}: {parameter.text}.{default}\n")
    return "".join(lines)


def _raises(row: Activation, flags: str) -> str:
    names = " or ".join(f"`{name}`" for name in row.names)
    parameters = f", {names} breaks the rule above" if names else ""
    return f"""TypeError: `input` is not a strided tensor of one of these dtypes, or {flags} is not a bool.
    ValueError: `p` is not a number in [0, 1]{parameters}, or `rng` is neither "eager" nor "fast"."""
