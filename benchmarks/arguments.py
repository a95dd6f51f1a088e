"""Types of command-line arguments: a bad one ends in an error that names the argument."""

import argparse
from collections.abc import Callable
from typing import Any

import torch


def at_least(kind: type, low: float, strict: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not (value > low if strict else value >= low) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if strict else 'at least'} {low}")
        return value

    parse.__name__ = kind.__name__
    return parse


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def torch_device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).splitlines()[0]}") from None
