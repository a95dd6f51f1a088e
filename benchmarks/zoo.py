"""`fuse` on models that nobody here wrote: torchvision's, and one of every Hugging Face configuration.

    python -m benchmarks.zoo [--only torchvision|transformers] [--match TEXT] [--json FILE] [--bits N]

Every model is built on the meta device (Hugging Face's with few layers, no dropout at p = 0) and called
twice in training mode, as it is and fused, where the eager composition takes the kernels' place. Models that
need values run on the CPU, made small. Counted are the dropouts of the very tensor that an activation
returned, and how many of them ran fused. Models whose inputs nobody here knows count by their report alone.

With `--bits N`, N small models run on the CPU: same seed, same bits in training and in eval, forward and
backward.
"""

import argparse
import contextlib
import functools
import inspect
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fusedact
from benchmarks.machine import versions
from fusedact.fusion import recognise

SECONDS = 40  # per model
SMALL = {  # a configuration's attributes and what they become, where they are larger
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2
    ),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_local_experts", "num_experts"), 2),
}
TINY = {
    **SMALL,
    **dict.fromkeys(("vocab_size",), 100),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(
        ("num_attention_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    ),
}


class Pairs(TorchFunctionMode):
    """Counts the dropouts of what an activation returned, by activation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._made: dict[int, tuple[Tensor, str]] = {}  # held, so that no other tensor gets its id

    def made(self, output: Any, name: str) -> None:
        """`output` is an activation's."""
        if isinstance(output, Tensor):
            self._made[id(output)] = output, name

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = ""
        if function in recognise.DROPOUTS:
            x, p, training = _bound(function, args, kwargs)
            if training and p > 0 and id(x) in self._made:
                self.found[self._made[id(x)][1]] += 1
        elif isinstance(function, recognise.CALLABLES) and function in recognise.FUNCTIONS:
            name = recognise.FUNCTIONS[function].row.name
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
    """The eager composition takes the kernels' place on any device; counts what ran, by activation."""
    ran: Counter[str] = Counter()
    run = recognise.run

    def counting(row: Any, *args: Any) -> Tensor:
        ran[row.name] += 1
        return run(row, *args)

    with (
        mock.patch.object(recognise, "run", counting),
        mock.patch.object(recognise, "_TRITON", True),
        mock.patch.object(recognise, "_runs_kernels", lambda x: type(x) in (Tensor, nn.Parameter)),
    ):
        yield ran


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


# Models --------------------------------------------------------------------------------------------------


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    from torchvision import models

    for name in models.list_models():
        weights = {"weights": None, "weights_backbone": None}
        builder = models.get_model_builder(name)
        given = {k: v for k, v in weights.items() if k in inspect.signature(builder).parameters}
        yield name, functools.partial(builder, **given)


def transformers_models(sizes: dict[str, int]) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    from transformers import CONFIG_MAPPING, AutoModel

    for name in sorted(CONFIG_MAPPING):

        def build(name: str = name) -> nn.Module:
            config = CONFIG_MAPPING[name]()
            shrink(config, sizes)
            model: nn.Module = AutoModel.from_config(config, dtype=torch.float32)
            return model

        if CONFIG_MAPPING[name] in AutoModel._model_mapping:
            yield name, build


def shrink(config: Any, sizes: dict[str, int]) -> None:
    """Fewer layers, smaller ones where a model runs in earnest, and no dropout of p = 0."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrink(value, sizes)
        elif ("dropout" in name or "pdrop" in name) and value == 0 and type(value) in (int, float):
            setattr(config, name, 0.1)
        elif name in sizes and type(value) is int and value > sizes[name]:
            with contextlib.suppress(Exception):
                setattr(config, name, sizes[name])
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and hasattr(config, "num_hidden_layers"):
        config.layer_types = kinds[: config.num_hidden_layers]


def inputs(model: nn.Module, name: str) -> Iterator[dict[str, Any]]:
    """Guesses of what a model takes, the likeliest first."""
    images = torch.zeros(2, 3, 224, 224)
    if not hasattr(model, "config"):
        yield {"x": images}
        yield {"x": torch.zeros(2, 3, 16, 224, 224)}
        yield {"x": torch.zeros(2, 3, 299, 299)}
        yield {"x": torch.zeros(2, 3, 256, 256)}
        yield {"image1": torch.zeros(1, 3, 128, 128), "image2": torch.zeros(1, 3, 128, 128)}
        return
    config: Any = model.config
    ids = torch.ones(2, 8, dtype=torch.long)
    size: Any = getattr(config, "image_size", None)
    size = size or getattr(getattr(config, "vision_config", None), "image_size", None) or 224
    height, width = (int(n) for n in (size if isinstance(size, list | tuple) else (size, size)))
    channels = getattr(config, "num_channels", 3)
    pixels = torch.zeros(2, channels if isinstance(channels, int) else 3, height, width)
    bins: Any = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", 80)
    frames: Any = 2 * getattr(config, "max_source_positions", 750)
    texts = {"input_ids": ids, "decoder_input_ids": ids, "bbox": torch.zeros(2, 8, 4, dtype=torch.long)}
    known = inspect.signature(model.forward).parameters
    pick = lambda options: {k: v for k, v in options.items() if k in known}  # noqa: E731
    yield pick({**texts, "pixel_values": pixels})
    yield pick(texts)
    yield pick({"pixel_values": pixels})
    yield pick({**texts, "input_features": torch.zeros(2, bins, frames)})
    yield pick({**texts, "input_features": torch.zeros(2, 64, bins)})
    yield pick({**texts, "input_values": torch.zeros(2, 16000)})
    yield pick({"input_values": torch.zeros(2, 1, 16000), **texts})
    yield pick({"pixel_values": torch.zeros(2, 3, 256, 256), **texts})
    yield pick({"inputs_embeds": torch.zeros(2, 8, getattr(config, "hidden_size", 32))})
    yield pick({"pixel_values": pixels[:, None].expand(2, 16, *pixels.shape[1:]), **texts})
    with contextlib.suppress(Exception):
        yield dict(model.dummy_inputs)  # type: ignore[arg-type]


# Sweeps --------------------------------------------------------------------------------------------------


def call(model: nn.Module, arguments: dict[str, Any]) -> Any:
    if hasattr(model, "config"):
        return model(**arguments)
    return model(*arguments.values())


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The model without memory, its dropouts with p above 0."""
    try:
        with torch.device("meta"):
            model = build()
    except NotImplementedError:  # it computes with tensors while it is made
        model = build().to("meta")
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0:
            module.p = 0.1
    return model


def sweep(
    library: str, name: str, build: Callable[[], nn.Module], tiny: Callable[[], nn.Module]
) -> dict[str, Any]:
    """One model's row: what was found while it ran, what ran fused, and what the report says."""
    row: dict[str, Any] = {"library": library, "model": name}
    start = time.perf_counter()
    stage = "building"
    try:
        with limited(SECONDS):
            model = on_meta(build).train()
            stage = "fuse"
            fused = fusedact.fuse(model)
            report = fusedact.fusion_report(fused)
            row["fused"] = len(report.fused)
            row["left"] = [[pair.path, pair.pair, pair.reason] for pair in report.left]
            stage = "running"
            errors: list[str] = []
            with torch.device("meta"):
                ran = run_both(model, fused, name, errors)
            if ran is None and library == "transformers":
                stage = "building a small one"
                model = tiny().train()
                stage = "running"
                ran = run_both(model, fusedact.fuse(model), name, errors)
            row.update(ran or {"not_run": errors[:1]})
    except TimeoutError as error:
        row["not_run"] = [f"{stage}: {error}"]
    except Exception as error:
        row["error"] = f"{stage}: {type(error).__name__}: {error}"[:300]
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def run_both(model: nn.Module, fused: nn.Module, name: str, errors: list[str]) -> dict[str, Any] | None:
    """What was found while `model` ran, and what ran fused in `fused`; None if no guess is right."""
    for arguments in inputs(model, name):
        pairs = Pairs()
        hook = nn.modules.module.register_module_forward_hook(pairs.module_called)
        torch.manual_seed(0)  # for layers that are dropped as a whole
        try:
            with pairs:
                call(model, arguments)
        except TimeoutError:
            raise
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:200])
            continue
        finally:
            hook.remove()
        torch.manual_seed(0)
        with composed() as ran:
            call(fused, arguments)
        return {"found_running": dict(pairs.found), "ran_fused": dict(ran)}
    return None


def compare_bits(name: str, build: Callable[[], nn.Module]) -> dict[str, Any] | None:
    """A small model in earnest, plain beside fused; None if it has no pair or no input is known."""
    try:
        torch.manual_seed(0)
        model = build().train()
        fused = fusedact.fuse(model)
        if not fusedact.fusion_report(fused).fused:
            return None
        arguments = next(a for a in inputs(model, name) if _runs(model, a))
    except Exception:
        return None
    same = {}
    for training in (True, False):
        results = []
        for each, context in (
            (model, contextlib.nullcontext()),
            (fused, composed()),
            (fused, contextlib.nullcontext()),
        ):
            each.train(training).zero_grad()
            buffers = [(buffer, buffer.clone()) for buffer in each.buffers()]
            torch.manual_seed(1)
            with context:
                total = sum(
                    (t.float().square().mean() for t in _tensors(call(each, arguments))), torch.zeros(())
                )
                if total.requires_grad:
                    total.backward()
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            results.append([total.detach(), *(p.grad for p in each.parameters() if p.grad is not None)])
        for way, other in (("composed", results[1]), ("as it is", results[2])):
            equal = len(other) == len(results[0]) and all(map(_equal, results[0], other))
            same[f"{way}, {'training' if training else 'eval'}"] = equal
    return {"model": name, "pairs": len(fusedact.fusion_report(fused).fused), "same": same}


def _runs(model: nn.Module, arguments: dict[str, Any]) -> bool:
    try:
        call(model, arguments)
    except Exception:
        return False
    return True


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b) or torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9)))


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


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the docs."""
    lines = [
        "| | models | ran | pairs while running | ran fused | | errors |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for library in dict.fromkeys(row["library"] for row in rows):
        mine = [row for row in rows if row["library"] == library]
        ran = [row for row in mine if "found_running" in row]
        found = sum(sum(row["found_running"].values()) for row in ran)
        fused = sum(sum(row["ran_fused"].values()) for row in ran)
        errors = sum("error" in row and not row["error"].startswith("building:") for row in mine)
        built = sum(not row.get("error", "").startswith("building:") for row in mine)
        share = f"{fused / found:.1%}" if found else "-"
        lines.append(f"| {library} | {built} | {len(ran)} | {found} | {fused} | {share} | {errors} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps; 1 if a model raised an error in `fuse`, or bits differed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["torchvision", "transformers"])
    parser.add_argument("--match", default="", help="models whose name has it")
    parser.add_argument("--bits", type=int, default=0, help="so many small models on the CPU (default: none)")
    parser.add_argument("--json", type=Path, help="write the raw results there")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    libraries = {
        "torchvision": lambda: ((*model, model[1]) for model in torchvision_models()),
        "transformers": lambda: (
            (*model, tiny)
            for model, (_, tiny) in zip(transformers_models(SMALL), transformers_models(TINY), strict=True)
        ),
    }
    rows: list[dict[str, Any]] = []
    bits: list[dict[str, Any]] = []
    for library, models in libraries.items():
        if options.only in (None, library) and not options.bits:
            for name, build, tiny in models():
                if options.match in name:
                    rows.append(sweep(library, name, build, tiny))
                    print(json.dumps(rows[-1]), flush=True)
    if options.bits:
        for name, build in transformers_models(TINY):
            if options.match in name and len(bits) < options.bits:
                row = compare_bits(name, build)
                if row:
                    bits.append(row)
                    print(json.dumps(row), flush=True)
    if rows:
        print(summary(rows))
    if options.json:
        content = {"versions": versions(), "rows": rows, "bits": bits}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    failed = any("error" in row and row["error"].startswith(("fuse", "running fused")) for row in rows)
    return int(failed or not all(all(row["same"].values()) for row in bits))


if __name__ == "__main__":
    raise SystemExit(main())
