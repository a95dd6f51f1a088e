"""Models of torchvision and Hugging Face, made without files, and guesses of their inputs."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], nn.Module]
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
# A configuration's attributes and what they become, where they are larger.
SMALL = dict.fromkeys((*_LAYERS, "num_decoder_layers", "num_encoder_layers"), 2)
TINY = {
    **SMALL,
    **dict.fromkeys(("vocab_size",), 100),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(
        ("num_attention_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
}


@dataclass(frozen=True)
class Model:
    """One model of a library.

    Attributes:
        library: the library that the model belongs to.
        name: its name there.
        build: makes it, in the ways that are tried one after the other.
        tiny: the same for one that runs on a CPU.
    """

    library: str
    name: str
    build: tuple[Build, ...]
    tiny: tuple[Build, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.library, self.name


def torchvision_models() -> Iterator[Model]:
    from torchvision import models

    for name in models.list_models():
        weights = {"weights": None, "weights_backbone": None}
        builder = models.get_model_builder(name)
        given = {k: v for k, v in weights.items() if k in inspect.signature(builder).parameters}
        yield Model("torchvision", name, (functools.partial(builder, **given),))


def transformers_models() -> Iterator[Model]:
    from transformers import CONFIG_MAPPING, AutoModel

    for name in (
        "bert",
        "mixtral",
        "vit",
        "whisper",
    ):  # imported once for all processes, since most models need them
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")

    def build(name: str, sizes: dict[str, int], drops: bool = True, **options: Any) -> nn.Module:
        config = CONFIG_MAPPING[name]()
        shrink(config, sizes, drops)
        model: nn.Module = AutoModel.from_config(config, dtype=torch.float32, **options)
        return model

    batched = {"experts_implementation": "batched_mm"}  # the only one that the meta device takes
    for name in sorted(CONFIG_MAPPING):
        if CONFIG_MAPPING[name] in AutoModel._model_mapping:
            make = functools.partial(build, name)
            part = functools.partial
            yield Model(
                "transformers",
                name,
                (part(make, SMALL, **batched), part(make, SMALL), part(make, {}), part(make, SMALL, False)),
                (part(make, TINY), part(make, TINY, False), part(make, SMALL)),
            )


def shrink(config: Any, sizes: dict[str, int], drops: bool = True) -> None:
    """Fewer layers, smaller ones where a model runs in earnest, and with `drops` no dropout of p = 0."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        new = value
        if isinstance(value, PretrainedConfig):
            shrink(value, sizes, drops)
        elif ("dropout" in name or "pdrop" in name) and value == 0 and type(value) in (int, float):
            new = 0.1 if drops else value
        elif name in sizes and type(value) is int:
            new = min(value, sizes[name])
        if new is not value:
            with contextlib.suppress(Exception):  # the configuration may refuse the value
                setattr(config, name, new)
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and isinstance(getattr(config, "num_hidden_layers", None), int):
        with contextlib.suppress(Exception):
            config.layer_types = kinds[: config.num_hidden_layers]


def inputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield guesses of a model's inputs, the likeliest first."""
    if not hasattr(model, "config"):
        yield {"x": torch.zeros(2, 3, 224, 224)}
        yield {"x": torch.zeros(2, 3, 16, 224, 224)}
        yield {"x": torch.zeros(2, 3, 299, 299)}
        yield {"x": torch.zeros(2, 3, 256, 256)}
        yield {"image1": torch.zeros(1, 3, 128, 128), "image2": torch.zeros(1, 3, 128, 128)}
        return
    known = inspect.signature(model.forward).parameters
    for guess in _guesses(model.config):
        chosen = {name: value for name, value in guess.items() if name in known}
        if chosen:
            yield chosen
    with contextlib.suppress(Exception):
        yield dict(model.dummy_inputs)  # type: ignore[arg-type]


def _guesses(config: Any) -> Iterator[dict[str, Any]]:
    ids = torch.ones(2, 8, dtype=torch.long)
    pixels = _pixels(config)
    bins = next(_numbers(config, ("num_mel_bins", "input_feat_per_channel", "feature_size")), 80)
    frames: Any = 2 * getattr(config, "max_source_positions", 750)
    texts = {"input_ids": ids, "decoder_input_ids": ids, "bbox": torch.zeros(2, 8, 4, dtype=torch.long)}
    size: Any = getattr(config, "hidden_size", 32)
    text_alone = {"input_ids": ids[:, :8], "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    yield {**texts, "pixel_values": pixels}
    yield texts
    yield {"pixel_values": pixels}
    yield {**texts, "input_features": torch.zeros(2, bins, frames)}
    yield {**texts, "input_features": torch.zeros(2, 64, bins)}
    mask = torch.ones(2, 64, dtype=torch.bool)
    yield {"input_features": torch.zeros(2, 64, bins), "attention_mask": mask, "input_features_mask": mask}
    yield {"input_features": torch.zeros(2, bins, 64), "attention_mask": mask, "input_features_mask": mask}
    yield {**texts, "input_values": torch.zeros(2, 16000)}
    yield {"input_values": torch.zeros(2, 1, 16000), **texts}
    yield {"pixel_values": torch.zeros(2, 3, 256, 256), **texts}
    yield {"pixel_values": torch.zeros(2, 3, 512, 512), **texts}
    yield {"inputs_embeds": torch.zeros(2, 8, size)}
    yield {"hidden_states": torch.zeros(2, 8, size)}
    yield {"pixel_values": pixels[:, None].expand(2, 16, *pixels.shape[1:]), **texts}
    yield {"pixel_values": pixels[:, None].expand(2, 2, *pixels.shape[1:]), **texts}
    yield {**text_alone, "pixel_values": pixels}
    yield {**text_alone, "pixel_values": pixels, "image_embeds_position_mask": ids.bool()}


def _numbers(config: Any, names: tuple[str, ...]) -> Iterator[int]:
    """What the configuration, or one in it, has under these names."""
    yield from (getattr(config, name) for name in names if type(getattr(config, name, None)) is int)
    for inner in vars(config).values():
        if hasattr(inner, "to_diff_dict"):
            yield from _numbers(inner, names)


def _pixels(config: Any) -> Tensor:
    size: Any = getattr(config, "image_size", None)
    size = size or getattr(getattr(config, "vision_config", None), "image_size", None) or 224
    height, width = (int(n) for n in (size if isinstance(size, list | tuple) else (size, size)))
    channels = getattr(config, "num_channels", 3)
    return torch.zeros(2, channels if isinstance(channels, int) else 3, height, width)
