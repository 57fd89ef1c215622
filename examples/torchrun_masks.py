"""Masks in several processes: who draws what, and how a checkpoint resumes them.

    torchrun --nproc-per-node 2 examples/torchrun_masks.py

On several machines the same file runs unchanged, on each of them:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \
        examples/torchrun_masks.py --out A_FOLDER_THAT_ALL_SEE

A rank is one of the processes. Without torchrun there is one. With GPUs each rank takes one and
they talk by NCCL, else by gloo. The script

1. shows that equal seeds give equal masks on all ranks, and how each rank gets its own,
2. trains a small DropConnect network by DistributedDataParallel on data that it makes,
3. saves model, optimizer and each rank's random state half-way, by torch.distributed.checkpoint,
4. starts again from the checkpoint, and checks that loss and parameters are the same, bit for bit.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import fused_dropout

FEATURES, CLASSES, EXAMPLES = 32, 4, 512  # of each rank
SHOWN = 48  # elements of a mask in the picture


# ---- processes -----------------------------------------------------------------------------------


def start() -> torch.device:
    """Joins the other processes; returns this one's device."""
    on_gpu = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if "RANK" in os.environ:  # set by torchrun, with all else that is needed
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not on_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def of_all_ranks(tensor: Tensor) -> Tensor:
    """[ranks, ...]: the same tensor of every rank, on every rank."""
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return torch.stack(found)


# ---- 1. who draws what ---------------------------------------------------------------------------


def drawn_mask(device: torch.device) -> Tensor:
    """Which of some ones dropout keeps, on all ranks, as numbers."""
    kept = fused_dropout.functional.dropout(torch.ones(SHOWN, device=device), 0.5) != 0
    return of_all_ranks(kept.to(torch.uint8)).cpu()


def masks_by_seeding(seed: int, device: torch.device) -> dict[str, Tensor]:
    """What the ranks draw, by the line that seeds them."""
    rank = dist.get_rank()
    torch.manual_seed(seed)  # the same masks on every rank, where shapes are the same
    shared = drawn_mask(device)
    torch.manual_seed(seed + rank)  # masks of its own for every rank
    own = drawn_mask(device)
    return {"torch.manual_seed(seed)": shared, "torch.manual_seed(seed + rank)": own}


# ---- 2. training ---------------------------------------------------------------------------------


def data_of_rank(seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points around a centre for each class: the same centres on all ranks, other points."""
    everywhere = torch.Generator().manual_seed(seed)
    own = torch.Generator().manual_seed(seed + 1 + dist.get_rank())
    centres = torch.randn(CLASSES, FEATURES, generator=everywhere)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=own)
    points = centres[labels] + 2 * torch.randn(EXAMPLES, FEATURES, generator=own)
    return points.to(device), labels.to(device)


class Training:
    """Network, optimizer and data; `losses` has one number for each step so far."""

    def __init__(self, seed: int, device: torch.device) -> None:
        network = nn.Sequential(
            fused_dropout.nn.DropConnectLinear(FEATURES, 128, p=0.5),
            nn.ReLU(),
            fused_dropout.nn.Dropout(0.3),
            nn.Linear(128, CLASSES),
        ).to(device)
        self.model = DistributedDataParallel(network)  # with the parameters of rank 0
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        self.points, self.labels = data_of_rank(seed, device)
        self.device = device
        self.losses: list[float] = []

    def run(self, steps: int, after_step: Callable[[], object]) -> None:
        """So many more steps. Parameters stay the same on all ranks, masks differ."""
        for _ in range(steps):
            loss = nn.functional.cross_entropy(self.model(self.points), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            after_step()

    def state(self) -> Tensor:
        """All parameters in one vector."""
        return torch.cat([each.detach().flatten() for each in self.model.parameters()])


# ---- 3. checkpoints ------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of torch's generators, under a name of this rank's own: equal names count as replicas."""
    rank = dist.get_rank()
    found = {f"cpu, rank {rank}": torch.get_rng_state()}
    if device.type == "cuda":
        found[f"cuda, rank {rank}"] = torch.cuda.get_rng_state(device)
    return found


def save(training: Training, folder: Path) -> None:
    model, optimizer = get_state_dict(training.model, training.optimizer)
    states = {"model": model, "optimizer": optimizer, "random": random_state(training.device)}
    dcp.save(states, storage_writer=dcp.FileSystemWriter(folder, overwrite=True))


def load(training: Training, folder: Path) -> None:
    """Into a new training; afterwards this rank draws what it would have drawn next."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    random = random_state(training.device)
    dcp.load({"model": model, "optimizer": optimizer, "random": random}, checkpoint_id=folder)
    set_state_dict(
        training.model, training.optimizer, model_state_dict=model, optim_state_dict=optimizer
    )
    rank = dist.get_rank()
    torch.set_rng_state(random[f"cpu, rank {rank}"])
    if training.device.type == "cuda":
        torch.cuda.set_rng_state(random[f"cuda, rank {rank}"], training.device)


# ---- what is shown -------------------------------------------------------------------------------


def save_picture(
    path: Path, masks: dict[str, Tensor], losses: list[float], resumed: list[float]
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 3.5), layout="constrained")
    for axis, (title, of_ranks) in zip(axes, masks.items(), strict=False):
        axis.imshow(of_ranks, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="none")
        axis.set(title=title, xlabel="element of the mask", ylabel="rank")
        axis.set_yticks(range(len(of_ranks)))
    axes[2].plot(losses, label="uninterrupted")
    first = len(losses) - len(resumed)
    axes[2].plot(range(first, len(losses)), resumed, "--", label="from the checkpoint")
    axes[2].set(title="loss on rank 0", xlabel="step")
    axes[2].legend()
    figure.savefig(path, dpi=100)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/examples"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=400, help="of training (default: 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 steps")
    return parser.parse_args()


def run(options: argparse.Namespace, device: torch.device) -> bool:
    """Whether a training resumed from a checkpoint was the same on all ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    console = Console(quiet=rank != 0)  # rank 0 speaks for all
    half = 10 if options.quick else max(1, options.steps // 2)

    masks = masks_by_seeding(options.seed, device)
    shared, own = (len({tuple(row) for row in found.tolist()}) for found in masks.values())
    console.print(f"{ranks} ranks on {device.type}. Different masks:")
    console.print(f"  after torch.manual_seed(seed)         {shared}")
    console.print(f"  after torch.manual_seed(seed + rank)  {own}")
    if (shared, own) != (1, ranks):
        raise SystemExit("the ranks have not drawn what they should")

    torch.manual_seed(options.seed + rank)
    folder = options.out / "torchrun_masks_checkpoint"
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=3 * half)

        def step() -> None:
            progress.advance(task)

        whole = Training(options.seed, device)
        whole.run(half, step)
        save(whole, folder)
        whole.run(half, step)

        torch.manual_seed(12345)  # another start altogether
        resumed = Training(options.seed, device)
        load(resumed, folder)
        resumed.run(half, step)

    same = torch.equal(resumed.state(), whole.state()) and resumed.losses == whole.losses[half:]
    everywhere = of_all_ranks(torch.tensor([same], dtype=torch.uint8, device=device))
    console.print(f"Loss {whole.losses[0]:.3f} at first, {whole.losses[-1]:.3f} at the end.")
    console.print(
        f"Resumed at step {half}: losses and parameters are "
        f"{'the same, bit for bit,' if everywhere.all() else 'NOT the same'} on "
        f"{int(everywhere.sum())} of {ranks} ranks.",
        soft_wrap=True,
    )
    if rank == 0:
        path = options.out / "torchrun_masks.png"
        save_picture(path, masks, whole.losses, resumed.losses)
        console.print(f"Picture: {path}", soft_wrap=True)
    return bool(everywhere.all())


def main() -> None:
    options = arguments()
    device = start()
    same = run(options, device)
    # No rank ends just after a collective with tensors: a thread of gloo that lets go of one while
    # Python shuts down aborts the process.
    dist.barrier()
    dist.destroy_process_group()
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
