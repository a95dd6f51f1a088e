"""The fused operations as modules, each in place of an activation followed by `torch.nn.Dropout`."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from . import rows, text
from .activations import Activation, Bound, check_row
from .checks import check_flag, check_probability
from .dispatch import activation_dropout, check_rng, repeated
from .functional import arguments
from .watcher import Watchers


def _binder(row: Activation) -> Callable[[Any], Bound]:
    """Return a method that binds the row to a module's parameters; for one it takes less host time."""
    if len(row.names) == 1:
        (name,) = row.names
        return lambda self: row.bind(getattr(self, name))
    return lambda self: row.bind(*[getattr(self, name) for name in row.names])


class FusedActivationDropout(nn.Module):
    """Compute an activation and dropout in one kernel each way: the base class of all fused modules.

    To make a module for an activation of your own, name its row:
    `class FusedStarDropout(FusedActivationDropout, row=STAR): ...`

    Args:
        p: probability that an element is zeroed, in [0, 1]. The others are scaled by 1 / (1 - p). Default:
            0.5.
        inplace: write the result into the input's buffer. Default: False.
        rng: the mask, "eager" or "fast"; see the functions of `fusedact.functional`. Default: "eager".
        parameters: the activation's own parameters, by keyword.

    Shape:
        Input: any shape and strides; float16, bfloat16, float32 or float64. Output: the same shape, dtype
        and layout.

    Raises:
        TypeError: the class has no row, `inplace` is not a bool, or a parameter is unknown or missing.
        ValueError: `p` is not a number in [0, 1], `rng` has another value, or a parameter breaks its rule.
    """

    row: ClassVar[Activation]
    _bound: ClassVar[Bound | None] = None  # if there are no parameters, bound once, which saves host time
    _bind: Callable[[], Bound]  # the row with this module's parameters
    _watchers: Watchers = ()  # of the monitors that watch this module

    def __init_subclass__(cls, *, row: Activation | None = None, **kwargs: Any) -> None:
        """Give the subclass its row's signature and docstring."""
        super().__init_subclass__(**kwargs)
        if row is None:  # a subclass of a fused module
            return
        cls.row = check_row(row)
        cls._bound = None if row.names else row.bind()
        cls._bind = _binder(row)  # type: ignore[assignment]

        def initialise(
            self: Any, p: float = 0.5, inplace: bool = False, *, rng: str = "eager", **parameters: Any
        ) -> None:
            FusedActivationDropout.__init__(self, p, inplace, rng=rng, **parameters)

        me = text.positional("self")
        initialise.__signature__ = text.signature(row, (me, *text.MODULE), None)  # type: ignore[attr-defined]
        initialise.__name__, initialise.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
        if "__init__" not in vars(cls):
            cls.__init__ = initialise  # type: ignore[method-assign]
        if not cls.__doc__:
            cls.__doc__ = text.of_module(row, cls.__name__)

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, rng: str = "eager", **parameters: Any
    ) -> None:
        super().__init__()
        if not hasattr(self, "row"):
            raise TypeError(
                "FusedActivationDropout has no row: write class Name(FusedActivationDropout, row=...)"
            )
        self.p = check_probability(p)
        self.inplace = check_flag(
            "inplace", inplace, "; parameters other than p and inplace are keyword-only"
        )
        self.rng = check_rng(rng)
        values = arguments(self.row, type(self).__name__, parameters, ("p", "inplace"))
        self.row.bind(*values)
        for name, value in zip(self.row.names, values, strict=True):
            setattr(self, name, value)

    def forward(self, input: Tensor) -> Tensor:
        """Return `dropout(act(input), p)`, or in eval `act(input)`; `torch.fx` records it as one node."""
        if type(input) is not Tensor and isinstance(
            input, Proxy
        ):  # torch.fx records PyTorch's own modules as one node too
            tracer: Any = input.tracer
            node: Any = tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
            return node
        row, values = self._bound or self._bind()
        if self.training is True and self.inplace is False and not self._watchers:
            result = repeated(row, input, values, self.p, self.rng)
            if result is not None:
                return result
        return activation_dropout(
            row, input, values, self.p, self.training, self.inplace, self.rng, self._watchers
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the watchers: monitors watch this module alone."""
        return {name: value for name, value in vars(self).items() if name != "_watchers"}

    def extra_repr(self) -> str:
        """Return the current arguments, for `repr`."""
        names = ["p", *self.row.names, "inplace", "rng"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class FusedDropout(FusedActivationDropout, row=rows.IDENTITY): ...


class FusedReLUDropout(FusedActivationDropout, row=rows.RELU): ...


class FusedReLU6Dropout(FusedActivationDropout, row=rows.RELU6): ...


class FusedHardtanhDropout(FusedActivationDropout, row=rows.HARDTANH): ...


class FusedHardsigmoidDropout(FusedActivationDropout, row=rows.HARDSIGMOID): ...


class FusedHardshrinkDropout(FusedActivationDropout, row=rows.HARDSHRINK): ...


class FusedSoftshrinkDropout(FusedActivationDropout, row=rows.SOFTSHRINK): ...


class FusedThresholdDropout(FusedActivationDropout, row=rows.THRESHOLD): ...


class FusedLeakyDropout(FusedActivationDropout, row=rows.LEAKY_RELU): ...


class FusedELUDropout(FusedActivationDropout, row=rows.ELU): ...


class FusedCELUDropout(FusedActivationDropout, row=rows.CELU): ...


class FusedSELUDropout(FusedActivationDropout, row=rows.SELU): ...


class FusedGELUDropout(FusedActivationDropout, row=rows.GELU): ...


class FusedSiLUDropout(FusedActivationDropout, row=rows.SILU): ...


class FusedMishDropout(FusedActivationDropout, row=rows.MISH): ...


class FusedSoftplusDropout(FusedActivationDropout, row=rows.SOFTPLUS): ...


class FusedLogSigmoidDropout(FusedActivationDropout, row=rows.LOGSIGMOID): ...


class FusedTanhshrinkDropout(FusedActivationDropout, row=rows.TANHSHRINK): ...


class FusedHardswishDropout(FusedActivationDropout, row=rows.HARDSWISH): ...


class FusedSigmoidDropout(FusedActivationDropout, row=rows.SIGMOID): ...


class FusedTanhDropout(FusedActivationDropout, row=rows.TANH): ...


class FusedSoftsignDropout(FusedActivationDropout, row=rows.SOFTSIGN): ...


class FusedQuickGELUDropout(FusedActivationDropout, row=rows.QUICK_GELU): ...


class FusedSquaredReLUDropout(FusedActivationDropout, row=rows.SQUARED_RELU): ...


FusedLeakyReLUDropout = FusedLeakyDropout
