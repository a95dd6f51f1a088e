"""A run's results: the files that it writes, and the packages that draw its plots.

Both are checked before the run begins, so that nothing is lost at its end.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class OutputError(Exception):
    """Results can't be written or drawn; the message gives the reason and the cure."""


def prepare(folder: Path, *names: str) -> None:
    """Make `folder`, try to open each file in it for writing, and for a PNG to draw a plot.

    Raises:
        OutputError: the folder can't be made, a file can't be written, or a plot can't be drawn.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / name for name in names):
        with writing(path):
            new = not path.exists()
            with path.open("ab"):
                pass
            if new:
                path.unlink()
    if any(name.endswith(".png") for name in names):
        _draw()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have an error of the system name the file, and the option that says where it is.

    Raises:
        OutputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror or error}); --out has to name a folder that can"
        ) from None


def _draw() -> None:
    """Draw a plot without a file, since some missing imports and fonts show only when a plot is drawn."""
    figure = new_figure(figsize=(1, 1))
    figure.subplots().set(title="a", xlabel="b")
    try:
        figure.savefig(io.BytesIO())
    except Exception as error:  # of a package that is missing or broken, or of the user's matplotlibrc
        raise OutputError(
            f"matplotlib can't draw ({_reason(error)}): pip install -e '.[mnist]', or mend matplotlibrc"
        ) from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def require(module: str, extra: str) -> Any:
    """Import `module`, which the package's `extra` installs.

    matplotlib refuses to import where MPLBACKEND names a package that isn't there. A notebook's kernel sets
    it for every process that it starts, so it is out of sight during the import.

    Raises:
        OutputError: the module doesn't import.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of a broken installation any
        raise OutputError(
            f"{module} doesn't import ({_reason(error)}): pip install -e '.[{extra}]'"
        ) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figure(**options: Any) -> Any:
    """A `matplotlib.figure.Figure`, which draws to a file and needs no backend."""
    return require("matplotlib.figure", "mnist").Figure(layout="constrained", **options)
