"""The host time of dropout alone, called in several forms, beside eager PyTorch's.

    python -m benchmarks.host_forms [--rounds N] [--json FILE]

It tells how much of the time is due to checks, and how much any call from Python takes. Measured as by
`benchmarks.host_time`, on a GPU or a simulated one.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fusedact
from benchmarks.host_time import WARM, N, command, needed_gpu, timed
from fusedact import _torch, dispatch, rows
from fusedact.kernels import launch

P = 0.5
Form = Callable[[Tensor], Tensor]


def forms(x: Tensor) -> dict[str, Form]:
    """Return dropout in each form, by name, for tensors like `x`; the first one only allocates.

    `autograd.Function`, hook and operator are called without a module and check nothing, to take little time.
    """
    module = fusedact.FusedDropout(P)
    for _ in range(WARM):  # so that the kernels are loaded
        torch.autograd.grad(module(x), x, x.detach())
    layout = tuple(x.shape), x.stride(), x.dtype
    configuration: Any = dispatch.configured(
        rows.IDENTITY, x.dtype, x.get_device(), x.numel(), (), P, "eager"
    )
    empty = _torch.allocator(x)
    forward: Any = launch.forward_like(x, configuration)
    backward: Any = launch.backward_like(x, configuration, layout)

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return empty(*layout)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return empty(*layout)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y, bits = forward(x)
            ctx.save_for_backward(bits)
            return y  # type: ignore[no-any-return]

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return backward(dy, *ctx.saved_tensors)  # type: ignore[no-any-return]

    class Quick(Function): ...

    view = torch.ops.aten._unsafe_view.default

    def hooked(x: Tensor) -> Tensor:
        y: Tensor = view(x, x.shape)
        y.data, bits = forward(x)
        node: Any = y.grad_fn
        node.register_hook(lambda _, gradients: (backward(*gradients, bits),))
        return y

    @torch.library.custom_op("fusedact_benchmarks::dropout", mutates_args=())
    def operator(x: Tensor) -> tuple[Tensor, Tensor]:
        return forward(x)  # type: ignore[no-any-return]

    operator.register_autograd(
        lambda ctx, dy, _: backward(dy, *ctx.saved_tensors),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output[1]),
    )

    return {
        "`autograd.Function` that only allocates": Empty.apply,
        "`autograd.Function`": Function.apply,
        "`autograd.Function`, called directly": _torch.quick_apply(Quick, "nothing"),
        "hook on a node of PyTorch's": hooked,
        "operator of `torch.library`": lambda x: operator(x)[0],
        "`FusedDropout`": module,
    }


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return two rows: forward alone, and forward with backward."""
    device = needed_gpu()
    x, dy = torch.ones(N, device=device, requires_grad=True), torch.ones(N, device=device)
    calls: dict[str, Form] = {"eager": nn.Dropout(P), **forms(x)}

    def with_backward(call: Form) -> Callable[[], object]:
        def step() -> None:
            call(x).backward(dy)
            x.grad = None

        return step

    forward = {name: (lambda call=call: call(x)) for name, call in calls.items()}
    both = {name: with_backward(call) for name, call in calls.items()}
    return [
        {"direction": "forward", **timed(forward, rounds)},
        {"direction": "forward and backward", **timed(both, rounds)},
    ]


def table(measured: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, a line per form."""
    lines = [
        "| form | forward, us | forward / eager | forward and backward, us | forward and backward / eager "
        "| forward and backward / eager, fastest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    forward, both = measured
    names = [name.removeprefix("fastest ") for name in both if name.startswith("fastest ")]
    for name in names:
        ratios = [row.get(f"{name} / eager", 1.0) for row in measured]
        fastest = both[f"fastest {name}"] / both["fastest eager"]
        label = "`nn.Dropout`" if name == "eager" else name
        lines.append(
            f"| {label} | {forward[name]:.1f} | {ratios[0]:.2f} | {both[name]:.1f} | {ratios[1]:.2f} "
            f"| {fastest:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the raw results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_forms", description=__doc__.splitlines()[0]
    )
    command(parser, 1000, lambda options: measure(options.rounds), table, arguments)


if __name__ == "__main__":
    main()
