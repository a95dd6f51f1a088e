"""The fused operations as modules: drop-in for an activation followed by `torch.nn.Dropout`."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from . import functional
from .activations import Activation, check_flag, check_parameter, check_probability
from .ops import Watcher, activation_dropout, check_rng


class _FusedDropout(nn.Module):
    """The call and the arguments that every fused module has, and their text."""

    activation: ClassVar[Activation]
    _watchers: tuple[Watcher, ...] = ()  # monitors' of this module

    def __init__(self, p: float, inplace: bool, rng: str) -> None:
        super().__init__()
        self.p = check_probability(p)
        self.inplace = check_flag("inplace", inplace)
        self.rng = check_rng(rng)

    def forward(self, input: Tensor) -> Tensor:
        """`dropout(act(input), p)`, in eval `act(input)`; in a `torch.fx` trace one node of the graph."""
        if isinstance(input, Proxy):  # as PyTorch's own modules are there
            tracer: Any = input.tracer
            node: Any = tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
            return node
        name = self.activation.parameter
        parameters = () if name is None else (check_parameter(name, getattr(self, name)),)
        return activation_dropout(
            self.activation,
            input,
            parameters,
            self.p,
            self.training,
            self.inplace,
            self.rng,
            self._watchers,
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: monitors watch this module alone."""
        return {name: value for name, value in vars(self).items() if name != "_watchers"}

    def extra_repr(self) -> str:
        names = ["p", self.activation.parameter, "inplace", "rng"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if name)


class FusedReLUDropout(_FusedDropout):
    """`nn.Sequential(nn.ReLU(), nn.Dropout(p))` in one kernel each way, one bit kept per element.

    Args:
        p: probability of an element to be zeroed, in [0, 1]. Default: 0.5.
        inplace: write the result into the input's buffer. Default: False.
        rng: see `fusedact.functional.relu_dropout`. Default: "eager".

    Shape: input and output (*), any shape; float16, bfloat16, float32 or float64.

    Raises:
        ValueError: `p` is no number in [0, 1], or `rng` has a value that isn't allowed.
        TypeError: `inplace` is no bool.

    Examples:
        >>> layer = FusedReLUDropout(p=0.2)
        >>> output = layer(torch.randn(64, 128))
    """

    activation = functional.RELU

    def __init__(self, p: float = 0.5, inplace: bool = False, *, rng: str = "eager") -> None:
        super().__init__(p, inplace, rng)


class FusedLeakyDropout(_FusedDropout):
    """`nn.Sequential(nn.LeakyReLU(negative_slope), nn.Dropout(p))` in one kernel each way.

    Args:
        p: probability of an element to be zeroed, in [0, 1]. Default: 0.5.
        negative_slope: any finite number. Default: 0.01.
        inplace: write the result into the input's buffer. Default: False.
        rng: see `fusedact.functional.leaky_relu_dropout`. Default: "eager".

    Shape: input and output (*), any shape; float16, bfloat16, float32 or float64.

    Raises:
        ValueError: `p` is no number in [0, 1], `negative_slope` no finite number, or `rng` has a
            value that isn't allowed.
        TypeError: `inplace` is no bool.

    Examples:
        >>> layer = FusedLeakyDropout(p=0.5, negative_slope=0.1)
        >>> output = layer(torch.randn(64, 128))
    """

    activation = functional.LEAKY_RELU

    def __init__(
        self, p: float = 0.5, negative_slope: float = 0.01, inplace: bool = False, *, rng: str = "eager"
    ) -> None:
        super().__init__(p, inplace, rng)
        self.negative_slope = check_parameter("negative_slope", negative_slope)


class FusedELUDropout(_FusedDropout):
    """`nn.Sequential(nn.ELU(alpha), nn.Dropout(p))` in one kernel each way.

    Args:
        p: probability of an element to be zeroed, in [0, 1]. Default: 0.5.
        alpha: any finite number. Default: 1.0.
        inplace: write the result into the input's buffer. Default: False.
        rng: see `fusedact.functional.elu_dropout`. Default: "eager".

    Shape: input and output (*), any shape; float16, bfloat16, float32 or float64.

    Raises:
        ValueError: `p` is no number in [0, 1], `alpha` no finite number, or `rng` has a value that
            isn't allowed.
        TypeError: `inplace` is no bool.

    Examples:
        >>> layer = FusedELUDropout(p=0.5)
        >>> output = layer(torch.randn(64, 128))
    """

    activation = functional.ELU

    def __init__(
        self, p: float = 0.5, alpha: float = 1.0, inplace: bool = False, *, rng: str = "eager"
    ) -> None:
        super().__init__(p, inplace, rng)
        self.alpha = check_parameter("alpha", alpha)
