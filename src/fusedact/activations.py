"""Rows, each with the facts that the package needs about one activation, and the registry of all rows.

The built-in rows are in `fusedact.rows`. `register_activation` adds an activation of your own.
"""

import enum
import functools
import inspect
import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .checks import check_finite

Ranges = tuple[tuple[float, float], ...]  # intervals of inputs, both ends included
_NOTHING: Any = object()
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_NEGATIVE: Ranges = ((-inf, 0.0),)
# Arguments and attributes of all fused functions and modules.
_TAKEN = ("self", "input", "p", "training", "inplace", "rng", "row")


class Saves(enum.Enum):
    """Name the memory that forward keeps for backward, per element. Bits are packed into 32-bit words."""

    MASK = "1 bit: kept by dropout"  # the derivative is 1 everywhere
    ONE_BIT = "1 bit: kept by dropout, and the gradient passes the activation"
    TWO_BITS = "2 bits: kept by dropout; the derivative is 1, else it is the first parameter"
    INPUT = "1 bit: kept by dropout; and the input, from which the derivative is computed"


REQUIRED = inspect.Parameter.empty


class Parameter(NamedTuple):
    """Describe one argument of an activation.

    Attributes:
        name: the argument's name, PyTorch's if PyTorch has the activation.
        default: the default, PyTorch's if PyTorch has the activation; `REQUIRED` if there is none.
        text: the argument's meaning, for the documentation.
        choices: for an argument that isn't a number, the values allowed, each with the row that it selects.
            None selects this row.
    """

    name: str
    default: Any
    text: str = "any finite number"
    choices: "Mapping[str, Activation | None] | None" = None


class Bound(NamedTuple):
    """A row and the numbers that its formula takes."""

    row: "Activation"
    values: tuple[float, ...]

    @property
    def dead(self) -> Ranges:
        """The inputs at which the derivative is exactly 0."""
        return _dead(self)

    @property
    def dies_where_negative(self) -> bool:
        """Whether positive inputs alone tell dead units, so that the kernels' packed bits suffice."""
        return self.dead in ((), _NEGATIVE)

    @property
    def saturated(self) -> Ranges:
        """The inputs at which the derivative is below 5 % of its largest value."""
        return self.row.saturated(*self.values)


@functools.lru_cache(maxsize=4096)
def _dead(bound: Bound) -> Ranges:
    return bound.row.dead(*bound.values)


def nowhere(*values: float) -> Ranges:
    """Return no range, whatever the parameters."""
    return ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation:
    """Describe one activation, in a row: its PyTorch function, its Triton functions and its properties.

    The Triton functions take `x` and two numbers, `a` and `b`: the parameters in their order, 0 where there
    is none. All three have one type: float32, or float64 for float64 tensors. A row equals itself alone.

    Attributes:
        name: an identifier. The fused function is called `<name>_dropout`.
        function: the PyTorch function. It is called as `function(input, *numbers)`, and with `inplace=True`
            if the row's `inplace` is true.
        formula: act(x) as plain text, for the documentation.
        saves: the memory that forward keeps for backward.
        module: the `nn.Module` class of the activation, for `fuse` and monitors; None if there is none.
            Its subclasses aren't recognised.
        parameters: at most two, in the order in which `function` takes them.
        rule: a function of the parameters' values. It returns an error's text, or None for values allowed.
        exact: with rng="eager" the results are eager's bits. The kernels then round where eager does.
        representable: for `exact` rows: act(x) is representable in x's dtype, so it needs no rounding.
        clamps: for `representable` rows: act(x) is x or a constant. It saves instructions.
        rounds_parameters: eager rounds the parameters to the tensor's dtype.
        slope: for `Saves.ONE_BIT`: the derivative where the gradient passes.
        vanishes: for `Saves.ONE_BIT`: act(x) is 0 where the gradient doesn't pass. It saves instructions.
        inplace: `function` takes `inplace`.
        widens: `function` returns float32 under autocast on a GPU, as softplus and all powers do.
        homogeneous: act(c x) = c act(x) for c >= 0, so a dropout before the activation can be fused too.
        from_output: for built-in rows and in-place calls: the gradient in PyTorch's operations, called as
            `from_output(gradient, output, *numbers)`. The Triton function is
            `<name>_derivative_from_output(y, a, b)`.
        dead: a function of the parameters. It returns the ranges of inputs at which the derivative is 0.
        saturated: a function of the parameters. It returns the ranges of inputs at which the derivative is
            below 5 % of its largest value.
        forward: the Triton function of act(x), `forward(x, a, b)`. None, for built-in rows alone, stands for
            `fusedact.kernels.mathematics.<name>`.
        backward: a Triton function. For `Saves.INPUT` it is `derivative(x, a, b)`. For ONE_BIT and TWO_BITS
            it is `passes(x, a, b)`, a bool. None, for built-in rows alone, stands for the function in
            `fusedact.kernels.mathematics`.
    """

    name: str
    function: Callable[..., Tensor]
    formula: str
    saves: Saves
    module: type[nn.Module] | None = None
    parameters: tuple[Parameter, ...] = ()
    rule: Callable[..., str | None] | None = None
    exact: bool = False
    representable: bool = False
    clamps: bool = False
    rounds_parameters: bool = False
    slope: float = 1.0
    vanishes: bool = False
    inplace: bool = False
    widens: bool = False
    homogeneous: bool = False
    from_output: Callable[..., Tensor] | None = None
    dead: Callable[..., Ranges] = nowhere
    saturated: Callable[..., Ranges] = nowhere
    forward: Any = None
    backward: Any = None
    names: tuple[str, ...] = field(init=False)  # of the parameters
    defaults: tuple[tuple[str, Any], ...] = field(init=False)  # by name
    # The latest value of at most one parameter and its result, since binding runs at every call.
    _latest: tuple[Any, Bound | None] = field(init=False, repr=False, default=(None, None))

    def __post_init__(self) -> None:
        self._check_parameters()
        object.__setattr__(self, "names", tuple(parameter.name for parameter in self.parameters))
        object.__setattr__(self, "defaults", tuple((p.name, p.default) for p in self.parameters))

    def _check_parameters(self) -> None:
        given = self.parameters
        if not isinstance(given, tuple) or not all(isinstance(each, Parameter) for each in given):
            raise TypeError(
                f"parameters={given!r} of the row {self.name!r}: it must be a tuple of fusedact.Parameter; "
                "for a single one, write (Parameter(...),)"
            )
        for i, name in enumerate(parameter.name for parameter in given):
            if not (isinstance(name, str) and name.isidentifier()) or keyword.iskeyword(name):
                raise ValueError(f"the parameter {name!r} of the row {self.name!r}: no name of an argument")
            if name in _TAKEN or hasattr(nn.Module, name) or name in [each.name for each in given[:i]]:
                raise ValueError(
                    f"the parameter {name!r} of the row {self.name!r}: a fused module or function has "
                    "something else of that name; choose another"
                )

    def __reduce__(self) -> Any:
        """Reduce to the name, since a copy or a pickle has to be the one registered row."""
        return _registered, (self.name,)

    def bind(self, *values: float | str) -> Bound:
        """Check the parameters' values, and return the row that they select with its numbers.

        Raises:
            ValueError: a value is not a finite number, not one of the choices, or against the row's rule.
        """
        if len(values) > 1 or _is_dynamo_compiling():  # compiled code must not depend on other calls
            return self._bind(values)
        value = values[0] if values else _NOTHING
        latest, bound = self._latest
        if bound is None or value is not latest:  # not by ==, since 1 == 1.0 == True and -0.0 == 0.0
            bound = self._bind(values)
            if value is _NOTHING or type(value) in (float, int, str):
                object.__setattr__(self, "_latest", (value, bound))
        return bound

    def _bind(self, values: tuple[float | str, ...]) -> Bound:
        row, numbers = self, []
        for parameter, value in zip(self.parameters, values, strict=True):
            if parameter.choices is None:
                numbers.append(check_finite(parameter.name, value))
            elif type(value) is str and value in parameter.choices:
                row = parameter.choices[value] or row
            else:
                allowed = " or ".join(map(repr, parameter.choices))
                raise ValueError(f"{parameter.name}={value!r}: it must be {allowed}")
        error = self.rule(*numbers) if self.rule is not None else None
        if error is not None:
            got = ", ".join(f"{n}={v!r}" for n, v in zip(self.names, values, strict=True))
            raise ValueError(f"{got}: {error}")
        return Bound(row, tuple(numbers))

    def values_in(self, values: tuple[float, ...], dtype: torch.dtype) -> tuple[float, ...]:
        """Return the numbers that the kernels get for tensors of that dtype."""
        if not self.rounds_parameters:
            return values
        numbers = torch.tensor(values, dtype=torch.float64, device="cpu")  # whatever the default device
        return tuple(numbers.to(dtype).tolist())


ROWS: dict[str, Activation] = {}  # by name, since an operator's argument can be a string but no row
_BY_MODULE: dict[type[nn.Module], Activation] = {}


def _registered(name: str) -> Activation:
    return ROWS[name]


def check_kind(row: Activation) -> None:
    """Raise TypeError unless `row` is one."""
    if not isinstance(row, Activation):
        raise TypeError(f"row must be a fusedact.Activation, but got {type(row).__name__}")


def register_activation(row: Activation) -> Activation:
    """Register an activation of your own for fused functions, modules, `fuse`, monitors and `torch.compile`.

    Args:
        row: the activation, with Triton functions as `forward` and `backward`; see `Activation`.

    Returns:
        `row`.

    Raises:
        TypeError: `row` is not an `Activation`; `forward` or `backward` is missing, is not a Triton function,
            or takes other arguments; `function` isn't callable, or `saves` is not a `Saves`.
        ValueError: the name is taken or not an identifier, the module already has a row, there are more than
            two parameters, or `Saves.TWO_BITS` has none.
    """
    check_kind(row)
    for name in ("forward", "backward"):
        function = getattr(row, name)
        if not hasattr(function, "arg_names"):
            hint = (
                "write it as a @triton.jit function" if callable(function) else "give a @triton.jit function"
            )
            raise TypeError(f"{name}={function!r}: the row {row.name!r} needs it; {hint}")
        if len(function.arg_names) != 3:
            got = ", ".join(function.arg_names)
            raise TypeError(f"{name} of the row {row.name!r} must take (x, a, b), but takes ({got})")
    _check_facts(row)
    return add_row(row)


def _check_facts(row: Activation) -> None:
    """Raise unless a row of one's own has only what the kernels and monitors can do with it."""
    of = f"of the row {row.name!r}"
    if row.saves is Saves.MASK:
        raise ValueError(f"saves={row.saves} {of}: it is plain dropout's; use Saves.ONE_BIT or another")
    if row.module is not None and not (isinstance(row.module, type) and issubclass(row.module, nn.Module)):
        raise TypeError(f"module={row.module!r} {of}: it must be a subclass of torch.nn.Module, or None")
    if row.from_output is not None:
        raise ValueError(f"from_output={row.from_output!r} {of}: only the package's own rows may have it")
    if row.saves is not Saves.ONE_BIT and (row.slope != 1 or row.vanishes):
        raise ValueError(f"slope={row.slope!r}, vanishes={row.vanishes!r} {of}: they need Saves.ONE_BIT")
    check_finite("slope", row.slope)
    if row.representable and not row.exact:
        raise ValueError(f"representable=True {of}: it needs exact=True")
    numbers = [parameter.name for parameter in row.parameters if parameter.choices is None]
    for name in ("rule", "dead", "saturated"):
        function = getattr(row, name)
        try:
            if function is not None or name != "rule":
                inspect.signature(function).bind(*numbers)
        except (TypeError, ValueError):
            takes = ", ".join(numbers) or "nothing"
            raise TypeError(f"{name}={function!r} {of}: it must be a function that takes {takes}") from None


def add_row(row: Activation) -> Activation:
    """Check a row's facts against each other, and add it to the registry; return it."""
    if not (isinstance(row.name, str) and row.name.isidentifier()):
        raise ValueError(f"name={row.name!r}: it must be an identifier, for the function <name>_dropout")
    if row.name in ROWS:
        raise ValueError(f"name={row.name!r}: another activation has it; choose a name of its own")
    if not callable(row.function):
        raise TypeError(f"function={row.function!r}: it must be callable, as PyTorch's function is")
    if not isinstance(row.saves, Saves):
        allowed = ", ".join(str(saves) for saves in Saves if saves is not Saves.MASK)
        raise TypeError(f"saves={row.saves!r}: it must be one of {allowed}")
    if len(row.parameters) > 2:
        raise ValueError(f"parameters of the row {row.name!r}: at most 2, but got {len(row.parameters)}")
    if row.saves is Saves.TWO_BITS and not row.parameters:
        raise ValueError(
            f"the row {row.name!r} saves two bits: its first parameter must be the other slope; add it"
        )
    if row.module in _BY_MODULE:
        raise ValueError(
            f"module={row.module!r}: the row {_BY_MODULE[row.module].name!r} has it; give another class"
        )
    ROWS[row.name] = row
    if row.module is not None:
        _BY_MODULE[row.module] = row
    return row


def check_row(row: Activation) -> Activation:
    """Return `row`; raise TypeError unless it is one, ValueError unless it is registered.

    Compilers and files know it by its name.
    """
    check_kind(row)
    if ROWS.get(row.name) is not row:
        raise ValueError(f"the row {row.name!r} isn't registered; give it to register_activation first")
    return row


def row_of(module: nn.Module) -> Activation | None:
    """Return the row of a module's exact class; None if the class is no activation's."""
    return _BY_MODULE.get(type(module))


def of_module(module: nn.Module) -> Bound | None:
    """Return the row of an activation module and its numbers, by its exact type; None if it has none."""
    row = row_of(module)
    return None if row is None else row.bind(*(getattr(module, name) for name in row.names))


def own_rows() -> tuple[Activation, ...]:
    """Return all rows but those that a parameter's choice selects: each has a function and a module."""
    chosen = [row for each in ROWS.values() for p in each.parameters for row in (p.choices or {}).values()]
    return tuple(row for row in ROWS.values() if row not in chosen)
