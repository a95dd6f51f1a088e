"""One model plain and fused, called alike: which pairs are found while it runs, and which run fused."""

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fusedact
from benchmarks.zoo.models import Build, Model, inputs
from fusedact.activations import Activation
from fusedact.composition import composition
from fusedact.fusion import recognise


class Pairs(TorchFunctionMode):
    """Counts, by activation, the dropouts of a tensor that an activation returned.

    Attributes:
        found: all of them.
        used_again: those where something else got the same tensor too, so that no kernel can do without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._made: dict[int, tuple[Tensor, str]] = {}  # held, so that no other tensor gets its id
        self._dropped: Counter[int] = Counter()
        self._others: set[int] = set()

    @property
    def used_again(self) -> Counter[str]:
        again = {key: n for key, n in self._dropped.items() if n > 1 or key in self._others}
        return sum((Counter({self._made[key][1]: n}) for key, n in again.items()), Counter())

    def made(self, output: Any, name: str) -> None:
        """`output` is an activation's."""
        if isinstance(output, Tensor):
            self._made[id(output)] = output, name
            self._others.discard(id(output))  # what made it in several operations

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = ""
        dropped = None
        if function in recognise.DROPOUTS:
            x, p, training = _bound(function, args, kwargs)
            if training and p > 0 and id(x) in self._made:
                dropped = id(x)
                self._dropped[dropped] += 1
                self.found[self._made[dropped][1]] += 1
        elif isinstance(function, recognise.CALLABLES) and function in recognise.FUNCTIONS:
            name = recognise.FUNCTIONS[function].row.name
        if getattr(function, "__name__", "") != "__get__":  # as of shape and dtype
            self._others |= {id(x) for x in (*args, *kwargs.values())} & self._made.keys() - {dropped}
        result = function(*args, **kwargs)
        if name:
            self.made(result, name)
        return result

    def module_called(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook on all modules, for activations that are written in several operations."""
        known = recognise.known_module(type(module))
        if known is not None:
            self.made(output, known.row.name)


def _bound(function: Any, args: Any, kwargs: Any) -> tuple[Any, float, bool]:
    values = {
        "p": 0.5,
        "training": True,
        **kwargs,
        **dict(zip(("input", "p", "training"), args, strict=False)),
    }
    return values["input"], values["p"], values.get("train", values["training"])


@contextlib.contextmanager
def composed() -> Iterator[Counter[str]]:
    """Run the eager composition in the kernels' place on any device; count the fused calls by activation."""
    ran: Counter[str] = Counter()

    def by_kernels(row: Activation, x: Any, values: tuple[float, ...], p: float, *_: Any) -> Tensor | None:
        if type(x) not in (Tensor, nn.Parameter):
            return None
        ran[row.name] += 1
        return composition(row, x, values, p, True, False)

    with mock.patch.object(recognise, "by_kernels", by_kernels):
        yield ran


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds of the processor's time: others may use it as well."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def call(model: nn.Module, arguments: dict[str, Any]) -> Any:
    if hasattr(model, "config"):
        return model(**arguments)
    return model(*arguments.values())


def first(builds: Sequence[Build]) -> nn.Module:
    """The first model that can be made."""
    for build in builds[:-1]:
        with contextlib.suppress(Exception):
            return build()
    return builds[-1]()


def on_meta(builds: Sequence[Build]) -> nn.Module:
    """The model without memory, its dropouts with p above 0."""
    try:
        with torch.device("meta"):
            model = first(builds)
    except NotImplementedError:  # it computes with tensors while it is made
        model = first(builds).to("meta")
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0:
            module.p = 0.1
    return model


def sweep(model: Model, seconds: int) -> dict[str, Any]:
    """Return one model's row: pairs found while it ran, pairs that ran fused, and the fusion report."""
    row: dict[str, Any] = {"library": model.library, "model": model.name}
    start = time.process_time()
    stage = "building"
    errors: list[str] = []
    try:
        with limited(seconds):
            plain = on_meta(model.build).train()
            stage = "fuse"
            fused = fusedact.fuse(plain)
            report = fusedact.fusion_report(fused)
            row["fused"] = len(report.fused)
            row["left"] = [[pair.path, pair.pair, pair.reason] for pair in report.left]
            stage = "running"
            with torch.device("meta"):
                ran = run_both(plain, fused, errors)
            for build in model.tiny:
                if ran is None:
                    ran = run_small(build, errors)
            row.update(ran or {"not_run": list(dict.fromkeys(errors))})
    except TimeoutError as error:
        row["not_run"] = [f"{stage}: {error}", *dict.fromkeys(errors)]
    except FusedError as error:
        row["error"] = f"running fused: {error}"
    except Exception as error:
        text = f"{stage}: {type(error).__name__}: {error}"
        if stage == "building":
            row["not_built"] = text[:300]
        elif "can't allocate memory" in text:  # of which the process has its part
            row["not_run"] = [text[:300], *dict.fromkeys(errors)]
        else:
            row["error"] = text[:300]
    row["seconds"] = round(time.process_time() - start, 1)
    return row


def run_small(build: Build, errors: list[str]) -> dict[str, Any] | None:
    """The same on the CPU, with values."""
    try:
        plain = build().train()
    except Exception as error:
        errors.append(f"building a small one: {type(error).__name__}: {error}"[:200])
        return None
    return run_both(plain, fusedact.fuse(plain), errors)


class FusedError(Exception):
    """The fused model raised an error where the plain one didn't."""


def run_both(model: nn.Module, fused: nn.Module, errors: list[str]) -> dict[str, Any] | None:
    """Return the pairs found in `model` and run fused in `fused`; None if no guess of the inputs is right."""
    for arguments in inputs(model):
        pairs = Pairs()
        hook = nn.modules.module.register_module_forward_hook(pairs.module_called)
        torch.manual_seed(0)  # for layers that are dropped as a whole
        try:
            with pairs:
                call(model, arguments)
        except TimeoutError:
            raise
        except Exception as error:
            text = f"{sorted(arguments)}: {type(error).__name__}: {error}"[:200]
            errors.append(text)
            continue
        finally:
            hook.remove()
        torch.manual_seed(0)
        try:
            with composed() as ran:
                call(fused, arguments)
        except TimeoutError:
            raise
        except Exception as error:
            raise FusedError(f"{type(error).__name__}: {error}"[:300]) from error
        return {
            "found_running": dict(pairs.found),
            "used_again": dict(pairs.used_again),
            "ran_fused": dict(ran),
        }
    return None


# Values ----------------------------------------------------------------------------------------------------


def compare_bits(model: Model, seconds: int) -> dict[str, Any] | None:
    """A small model in earnest, plain beside fused; None if it has no pair or no input is known."""
    with limited(seconds):
        for build in model.tiny or model.build:
            torch.manual_seed(0)
            try:
                plain = build().train()
            except Exception:
                continue
            for arguments in inputs(plain):
                with_values = {name: _filled(value) for name, value in arguments.items()}
                if _runs(plain, with_values):
                    return _compared(model, plain, with_values)
    return None


def _filled(value: Any) -> Any:
    """Numbers in place of zeros."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return torch.randn(value.shape) if floating else value


def _compared(model: Model, plain: nn.Module, arguments: dict[str, Any]) -> dict[str, Any] | None:
    fused = fusedact.fuse(plain)
    pairs = len(fusedact.fusion_report(fused).fused)
    if not pairs:
        return None
    same: dict[str, bool] = {}
    difference = 0.0
    ran: Counter[str] = Counter()
    for training in (True, False):
        truth = _step(plain, arguments, training)
        with composed() as counted:
            found = {"composed": _step(fused, arguments, training)}
        ran += counted
        found["as it is"] = _step(fused, arguments, training)
        for way, values in found.items():
            assert len(values) == len(truth)
            same[f"{way}, {'training' if training else 'eval'}"] = all(map(_equal, truth, values))
            difference = max(difference, *map(_difference, truth, values))
    row = {"library": model.library, "model": model.name, "pairs": pairs}
    return {**row, "ran_fused": dict(ran), "same": same, "difference": difference}


def _step(model: nn.Module, arguments: dict[str, Any], training: bool) -> list[Tensor]:
    """Loss and gradients with a seed; buffers stay what they were."""
    model.train(training).zero_grad()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # some models draw from it which layers to drop
    outputs = list(_tensors(call(model, arguments)))
    total = sum((t.float().square().mean() for t in outputs), torch.zeros(()))
    if total.requires_grad:
        total.backward()
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*(t.detach() for t in outputs), *gradients]


def _runs(model: nn.Module, arguments: dict[str, Any]) -> bool:
    try:
        call(model, arguments)
    except TimeoutError:
        raise
    except Exception:
        return False
    return True


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _difference(a: Tensor, b: Tensor) -> float:
    """Of the largest value."""
    a, b = a.nan_to_num(), b.nan_to_num()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.numel() else 0.0


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
