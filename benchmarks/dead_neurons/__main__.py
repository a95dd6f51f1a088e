"""The command."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import mnist_data

from . import page, store
from .regimes import QUICK, REGIMES
from .run import run

RESULTS = Path(__file__).parents[1] / "results" / "dead-neurons"
DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: Sequence[str] | None = None) -> None:
    names = [regime.name for regime in REGIMES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dead_neurons",
        description="Train the nets of the study of dead units. Run again, it goes on where it ended.",
    )
    parser.add_argument("--regime", nargs="+", choices=names, default=names, help="run only these regimes")
    parser.add_argument("--quick", action="store_true", help="train on few digits, in five minutes")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder that holds MNIST/raw")
    parser.add_argument(
        "--processes", type=_positive, default=2, metavar="N", help="number of jobs at a time (default: 2)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/dead-neurons"),
        metavar="DIR",
        help="folder for a file per job",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="folder for a file per regime"
    )
    parser.add_argument("--page", action="store_true", help="write the page from --out, and train nothing")
    options = parser.parse_args(arguments)
    if options.page:
        page.write(page.load(options.out), DOCS)
        return
    try:
        digits = mnist_data.load(options.data)
        regimes = [
            regime for regime in (QUICK if options.quick else REGIMES) if regime.name in options.regime
        ]
        folder = options.work / ("quick" if options.quick else "whole")
        run([job for regime in regimes for job in regime.jobs()], digits, folder, options.processes)
        for regime in regimes:
            store.collect(
                regime.jobs(),
                store.digest(digits),
                digits.source,
                folder,
                options.out / f"{regime.name}.json",
            )
    except (mnist_data.DataError, store.DamagedError) as error:
        raise SystemExit(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    main()
