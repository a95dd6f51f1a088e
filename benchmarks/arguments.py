"""Types of command-line arguments. A bad value ends the command with an error that names the argument."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

MOST = 2**31 - 1  # far above any use, and below any overflow


def at_least(kind: type, low: float, strict: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not (value > low if strict else value >= low):
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if strict else 'at least'} {low}")
        if value > MOST:
            raise argparse.ArgumentTypeError(f"{text} is above {MOST}")
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
        value = torch.zeros(1, device=text)
        value.item()  # "meta" has no values
    except Exception as error:  # of a package that a device's name stands for, any
        raise argparse.ArgumentTypeError(f"{text}: {' '.join(str(error).split())[:200]}") from None
    return value.device
