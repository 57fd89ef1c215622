"""What each of the two processes of test_distributed.py runs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from small_calls import SEED
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fused_dropout._tools.table import Layer, layers

PROCESSES = 2
STEPS = 2


class EveryLayer(torch.nn.Module):
    """All modules of the table that have parameters, each on inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        rows = [layer for layer in layers() if layer.has_parameters()]
        self.parts = torch.nn.ModuleDict({layer.name: layer.build() for layer in rows})

    def forward(self, inputs: dict[str, list[Tensor]]) -> Tensor:
        outputs = [part(*inputs[name]) for name, part in self.parts.items()]
        return torch.stack([output.square().mean() for output in outputs]).sum()


def model_of(seed: int = 1) -> EveryLayer:
    torch.manual_seed(seed)
    model = EveryLayer().double()
    for parameter in model.parameters():  # without ties and zeros
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def inputs_of_rank(rank: int) -> dict[str, list[Tensor]]:
    draw = torch.Generator().manual_seed(10 + rank)

    def inputs(layer: Layer) -> list[Tensor]:
        return [torch.randn(s, generator=draw, dtype=torch.float64) for s in layer.shapes]

    return {layer.name: inputs(layer) for layer in layers() if layer.has_parameters()}


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """The steps of one process; masks differ from process to process and step to step."""
    torch.manual_seed(SEED + rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(inputs_of_rank(rank)).backward()
        optimizer.step()


def trained_alone() -> dict[str, Tensor]:
    """The same steps in one process: gradients are means over the ranks."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states = []
    for rank in range(PROCESSES):
        torch.manual_seed(SEED + rank)
        states.append(torch.get_rng_state())
    for _ in range(STEPS):
        optimizer.zero_grad()
        for rank in range(PROCESSES):
            torch.set_rng_state(states[rank])
            (model(inputs_of_rank(rank)) / PROCESSES).backward()
            states[rank] = torch.get_rng_state()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def run(rank: int, folder: str) -> None:
    """One process: trains by DDP and by FSDP2, and rank 0 saves what came out."""
    torch.set_num_threads(1)
    meeting_point = f"file://{folder}/meeting_point"
    dist.init_process_group("gloo", meeting_point, rank=rank, world_size=PROCESSES)
    try:
        for name, trained in (("ddp", by_ddp(rank)), ("fsdp2", by_fsdp2(rank))):
            if rank == 0:
                torch.save(trained, Path(folder) / f"{name}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def by_ddp(rank: int) -> dict[str, Tensor]:
    model = model_of()
    parallel = DistributedDataParallel(model)
    train(parallel, torch.optim.SGD(parallel.parameters(), lr=0.1), rank)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def by_fsdp2(rank: int) -> dict[str, Tensor]:
    model = model_of()
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    for part in model.parts.values():
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), rank)
    return {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
