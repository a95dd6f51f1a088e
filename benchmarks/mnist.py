"""Three nets that differ in their activation, trained on MNIST with dropout: which learns best?

    python benchmarks/mnist.py

trains 784-128-10 nets with ReLU, LeakyReLU and ELU, prints their loss and accuracy, and writes
`activation_comparison.png` and `activation_comparison.json`.

    torchrun --nproc-per-node 2 benchmarks/mnist.py

does the same with two processes, each of which takes its share of every batch, on a GPU of its own.
Write `--` before the script if options follow it: torchrun would take `--p` for one of its own.
"""

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import fusedact

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import at_least, probability, torch_device
from benchmarks.machine import describe_device, versions
from benchmarks.mnist_data import DataError, Digits, load
from benchmarks.outputs import OutputError, new_figure, prepare, require, writing

# Per activation: the fused module, and the eager modules that it stands for.
NETS: dict[str, tuple[Callable[[float], nn.Module], Callable[[], nn.Module]]] = {
    "ReLU": (fusedact.FusedReLUDropout, nn.ReLU),
    "LeakyReLU": (fusedact.FusedLeakyDropout, nn.LeakyReLU),
    "ELU": (fusedact.FusedELUDropout, nn.ELU),
}


RESULTS, PLOT = "activation_comparison.json", "activation_comparison.png"


def place() -> tuple[int, int]:
    """This process's rank, and how many processes there are: 0 of 1 but under torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[None]:
    """Under torchrun: among the other processes, each with a GPU of its own; only the first prints."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if options.device.type == "cuda":
        options.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(options.device)
    dist.init_process_group("nccl" if options.device.type == "cuda" else "gloo")
    with open(os.devnull, "w") as silence:
        with contextlib.redirect_stdout(silence if dist.get_rank() else sys.stdout):
            yield
        dist.barrier()  # none leaves while another still hears from it
    dist.destroy_process_group()


def load_once(directory: Path | None) -> Digits:
    """The digits that the first process loads: it alone downloads."""
    rank, world = place()
    digits = [load(directory) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(digits)
    assert digits[0] is not None
    return digits[0]


def build(activation: str, hidden: int, p: float, backend: str) -> nn.Sequential:
    """784-hidden-10, its middle fused or eager; the first layer is net[0]."""
    fused, eager = NETS[activation]
    first = nn.Linear(784, hidden)
    middle = [fused(p)] if backend == "fused" else [eager(), nn.Dropout(p)]
    return nn.Sequential(first, *middle, nn.Linear(hidden, 10))


@dataclass(frozen=True)
class Tested:
    """On the test images: accuracy in percent, and the fraction of hidden units that fire for none.

    Of a net that has diverged a unit's input is NaN: such a unit isn't taken for one that never fires.
    """

    accuracy: float
    never_fired: float


@torch.no_grad()
def evaluate(net: nn.Sequential, digits: Digits) -> Tested:
    """Run `net` on the test images with nothing dropped."""
    net.eval()
    right = (net(digits.test_images).argmax(1) == digits.test_labels).float().mean()
    fires = (net[0](digits.test_images) <= 0).all(0).logical_not()
    net.train()
    return Tested(100 * right.item(), 1 - fires.float().mean().item())


def train(
    activation: str, seed: int, digits: Digits, options: argparse.Namespace, progress: Any
) -> dict[str, Any]:
    """One net from one seed: its figures per epoch. The same seed gives every backend the same start.

    Epoch 0 is before training: units that never fire there were born dead.

    Among several processes each takes its share of every batch; the figures are of all shares.
    """
    rank, world = place()
    progress.set_description(f"{activation}, seed {seed}")
    progress.write(f"{activation}, seed {seed}")
    torch.manual_seed(seed)
    device = digits.train_images.device
    net = build(activation, options.hidden, options.p, options.backend).to(device)
    trained = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    model: Callable[[Tensor], Tensor] = torch.compile(trained) if options.backend == "compiled" else trained
    if rank:
        torch.manual_seed(seed + 1_000_000 * rank)  # masks of its own; the parameters are the first's
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
    order = torch.Generator().manual_seed(seed)
    epochs: list[dict[str, Any]] = [{"epoch": 0, "never_fired": evaluate(net, digits).never_fired}]
    start = time.perf_counter()
    for epoch in range(1, options.epochs + 1):
        total = torch.zeros((), device=device)
        permutation = torch.randperm(len(digits.train_labels), generator=order).to(device)
        for batch in permutation.split(options.batch_size):
            share = batch[rank::world]
            optimizer.zero_grad()
            logits = model(digits.train_images[share])
            # Of the batch's mean, what this share adds to it (nothing if it is empty).
            loss = F.cross_entropy(logits, digits.train_labels[share], reduction="sum") / len(batch)
            (world * loss).backward()  # gradients are averaged over the processes
            optimizer.step()
            total += loss.detach() * len(batch)
            progress.update()
        if world > 1:
            dist.all_reduce(total)
        mean_loss = total.item() / len(digits.train_labels)
        tested = evaluate(net, digits)
        epochs.append({"epoch": epoch, "loss": mean_loss, **asdict(tested)})
        progress.write(f"Epoch {epoch}, Loss: {mean_loss:.4f}, Accuracy: {tested.accuracy:.2f}%")
    seconds = time.perf_counter() - start
    return {"activation": activation, "seed": seed, "seconds": seconds, "epochs": epochs}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, per activation and epoch, of the figures that it has."""
    rows = []
    for activation in NETS:
        mine = [run["epochs"] for run in runs if run["activation"] == activation]
        for same_epoch in zip(*mine, strict=True):
            row: dict[str, Any] = {"activation": activation, "epoch": same_epoch[0]["epoch"]}
            for figure in [name for name in same_epoch[0] if name != "epoch"]:
                values = [epoch[figure] for epoch in same_epoch]
                row[figure] = statistics.fmean(values)
                row[f"{figure}_deviation"] = deviation(values)
            rows.append(row)
    return rows


def deviation(values: list[float]) -> float | None:
    """The standard deviation, NaN where one isn't finite, as the loss of a net that has diverged."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def table(rows: list[dict[str, Any]], seeds: int) -> str:
    """The last epoch's figures, and before training how many units never fire, as text."""

    def cell(row: dict[str, Any], figure: str, factor: float, digits: int) -> str:
        text = f"{factor * row[figure]:.{digits}f}"
        deviation = row[f"{figure}_deviation"]
        return text if deviation is None else f"{text} ± {factor * deviation:.{digits}f}"

    last = max(row["epoch"] for row in rows)
    born = {row["activation"]: row for row in rows if row["epoch"] == 0}
    lines = [
        f"{'':<12}{'':>18}{'':>18}{'never fired, %':>26}",
        f"{'activation':<12}{'loss':>18}{'accuracy, %':>18}{'before':>15}{'after':>15}",
    ]
    for row in rows:
        if row["epoch"] == last:
            name = row["activation"]
            loss, accuracy = cell(row, "loss", 1, 4), cell(row, "accuracy", 1, 2)
            before, after = (cell(at, "never_fired", 100, 1) for at in (born[name], row))
            lines.append(f"{name:<12}{loss:>18}{accuracy:>18}{before:>15}{after:>15}")
    if seeds > 1:
        lines.append(f"mean ± standard deviation over {seeds} seeds")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Loss, accuracy and dead units over the epochs, with a band of one standard deviation.

    Dead units are drawn from epoch 0 on, before training: those born dead are told from those that died.
    """
    panels = (
        ("loss", 1, "training loss (cross-entropy)"),
        ("accuracy", 1, "test accuracy (%)"),
        ("never_fired", 100, "hidden units that fire for no test image (%)"),
    )
    figure = new_figure(figsize=(15, 4.5))
    axes = figure.subplots(1, 3)
    for axis, (name, factor, label) in zip(axes, panels, strict=True):
        for activation in NETS:
            mine = [row for row in rows if row["activation"] == activation and name in row]
            x = [row["epoch"] for row in mine]
            y = [factor * row[name] for row in mine]
            spread = [factor * (row[f"{name}_deviation"] or 0) for row in mine]
            axis.plot(x, y, marker="o", label=activation)
            low = [value - s for value, s in zip(y, spread, strict=True)]
            high = [value + s for value, s in zip(y, spread, strict=True)]
            axis.fill_between(x, low, high, alpha=0.2)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[2].set_ylim(bottom=0)
    axes[0].legend()
    figure.suptitle(title, parse_math=False)  # a folder's name may have dollars
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Train nets with ReLU, LeakyReLU and ELU + dropout on MNIST and compare them.",
        epilog="The defaults reproduce the comparison in docs/mnist.md for the first of its seeds: nets "
        "784-128-10 with dropout after the hidden layer, on all 60,000 digits. --seeds 0 1 2 3 4 reproduces "
        "the whole. Another machine, number of threads or version of PyTorch gives other last digits. "
        "Where MNIST can't be downloaded, a sample of 12,000 digits takes its place.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    result.add_argument("--epochs", type=at_least(int, 1), default=5, help="passes over the digits")
    result.add_argument("--batch-size", type=at_least(int, 1), default=64, help="digits per step")
    result.add_argument("--hidden", type=at_least(int, 1), default=128, help="units of the hidden layer")
    result.add_argument("--p", type=probability, default=0.5, help="dropout probability")
    result.add_argument(
        "--lr", type=at_least(float, 0, strict=True), default=1e-3, help="Adam's learning rate"
    )
    result.add_argument("--seeds", type=at_least(int, 0), nargs="+", default=[0], help="one net each")
    result.add_argument("--device", type=torch_device, default=default_device, help="where to train")
    result.add_argument(
        "--backend",
        choices=("fused", "eager", "compiled"),
        default="fused",
        help="fused modules, eager ones, or eager ones under torch.compile",
    )
    result.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="MNIST in torchvision's layout, DIR/MNIST/raw/ (default: download it)",
    )
    result.add_argument("--out", type=Path, metavar="DIR", default=Path("results"), help="where results go")
    return result


def main(arguments: list[str] | None = None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # whatever its encoding lacks mustn't cost a run
    command = parser()
    options = command.parse_args(arguments, argparse.Namespace(data=None))
    if len(set(options.seeds)) != len(options.seeds):
        command.error("argument --seeds: a seed stands twice")
    try:
        with joined(options):
            compare(options)
    except (DataError, OutputError) as error:
        command.exit(2, f"{command.prog}: error: {error}\n")
    except KeyboardInterrupt:
        command.exit(130, f"\n{command.prog}: interrupted\n")
    except (MemoryError, RuntimeError) as error:  # on a CPU PyTorch has no error of its own for it
        if not (isinstance(error, MemoryError) or "allocate" in str(error)):
            raise
        cure = "choose a smaller --hidden or --batch-size"
        command.exit(1, f"{command.prog}: error: not enough memory: {cure}\n")


def compare(options: argparse.Namespace) -> None:
    """Train every net from every seed; print the figures and write the files.

    Raises:
        DataError: see `load`.
        OutputError: something is missing for the results, or they can't be written.
    """
    rank, world = place()
    if rank == 0:
        prepare(options.out, RESULTS, PLOT)
    tqdm = require("tqdm", "mnist").tqdm
    digits = load_once(options.data).to(options.device)
    device = describe_device(options.device) + (f", {world} processes" if world > 1 else "")
    print(
        f"{len(digits.train_labels)} training and {len(digits.test_labels)} test digits "
        f"from {digits.source}; {options.backend} on {device}"
    )
    batches = -(-len(digits.train_labels) // options.batch_size)
    runs = []
    total = batches * options.epochs * len(NETS) * len(options.seeds)
    with tqdm(total=total, unit="batch", disable=rank > 0 or None, leave=False) as progress:
        for activation in NETS:
            for seed in options.seeds:
                runs.append(train(activation, seed, digits, options, progress))
    rows = summary(runs)
    print(table(rows, len(options.seeds)))
    if rank:
        return
    result = {
        "arguments": {
            name: str(v) if isinstance(v, Path | torch.device) else v for name, v in vars(options).items()
        },
        "versions": versions(),
        "device": device,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": {"source": digits.source, "train": len(digits.train_labels), "test": len(digits.test_labels)},
        "processes": world,
        "seeds": options.seeds,
        "runs": runs,
        "summary": rows,
    }
    with writing(options.out / RESULTS):
        (options.out / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    seeds = "1 seed" if len(options.seeds) == 1 else f"{len(options.seeds)} seeds"
    sizes = f"784-{options.hidden}-10, p = {options.p}, {seeds}"
    with writing(options.out / PLOT):
        plot(rows, f"{sizes}, {digits.source}", options.out / PLOT)
    print(f"Written: {options.out / PLOT} and {options.out / RESULTS}")


if __name__ == "__main__":
    main()
