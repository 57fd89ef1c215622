"""What can only go wrong on a GPU: streams, CUDA graphs, generators, several devices, memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from support.devices import generator_state
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout._core.rng import make_rng_state
from fused_dropout.functional import dropconnect_linear
from fused_dropout.nn import DropConnectLinear

ROWS, OUTS, INS = 64, 48, 256
GIB = 2**30


def ones(*shape: int, device: torch.device, **kwargs: Any) -> Tensor:
    return torch.ones(*shape, device=device, **kwargs)


def leaves(device: torch.device, bias: bool = True) -> list[Tensor]:
    """Unit input, weight and bias that require grad."""
    shapes = ((ROWS, INS), (OUTS, INS), (OUTS,))[: 3 if bias else 2]
    return [ones(*shape, device=device, requires_grad=True) for shape in shapes]


def step(tensors: list[Tensor], **kwargs: Any) -> tuple[Tensor, ...]:
    """output, d_input, d_weight and, with a bias, d_bias."""
    output = dropconnect_linear(*tensors[:2], tensors[2] if len(tensors) > 2 else None, **kwargs)
    return (output.detach(), *torch.autograd.grad(output.sum(), tensors))


def check_one_mask(output: Tensor, d_input: Tensor, d_weight: Tensor, *d_bias: Tensor) -> None:
    """With unit operands at p = 0.5 all four count kept connections, two for each."""
    assert output.any()
    if not d_bias:
        assert torch.equal(d_input.sum(1), output.sum(1))
    from_bias = d_bias[0] if d_bias else torch.zeros_like(output[0])
    assert torch.equal(d_weight.sum(1) + from_bias, output.sum(0))
    assert float(d_input.sum() + from_bias.sum()) == float(output.sum())


# ---- streams and synchronisation


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_runs_on_the_current_stream(cuda: torch.device, storage: str) -> None:
    """Behind a wait on a side stream: kernels elsewhere would find operands not yet written."""
    tensors = leaves(cuda)
    keys = {"p": 0.5, "seed": 3, "mask_storage": storage}
    expected = step(tensors, **keys)
    mask = fused_dropout.mask((500, 1000), 0.5, seed=3, device=cuda)
    late = [torch.zeros_like(tensor) for tensor in tensors]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles, about 50 ms
        for tensor in late:
            tensor.fill_(1).requires_grad_()
        results = step(late, **keys)
        drawn = fused_dropout.mask((500, 1000), 0.5, seed=3, device=cuda)
    stream.synchronize()
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(drawn, mask)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mask", ["row", "example", "batch", 3])
@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_nothing_waits_for_the_gpu(cuda: torch.device, storage: str, mask: str | int) -> None:
    tensors, state = leaves(cuda), make_rng_state(3, device=cuda)
    generator = torch.Generator(cuda).manual_seed(1)
    for source in ({}, {"seed": 3}, {"rng_state": state}, {"generator": generator}):
        with no_synchronisation():
            step(tensors, p=0.3, mask=mask, mask_storage=storage, **source)
    with no_synchronisation():
        fused_dropout.mask((30, 1000), 0.3, seed=3, device=cuda)
        fused_dropout.packed_mask((30, 1000), 0.3, seed=3, device=cuda)


# ---- CUDA graphs


def captured(function: Any, generator: torch.Generator | None = None) -> tuple[Any, Any]:
    """A CUDA graph of one call, and the tensors that a replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def replayed(graph: Any, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    for result in results:
        result.fill_(-1)
    graph.replay()
    return tuple(result.clone() for result in results)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_every_replay_draws_a_fresh_mask(cuda: torch.device, storage: str, bias: bool) -> None:
    tensors = leaves(cuda, bias)
    graph, results = captured(lambda: step(tensors, p=0.5, mask_storage=storage))
    replays = [replayed(graph, results) for _ in range(4)]
    for number, replay in enumerate(replays):
        check_one_mask(*replay)
        for other in replays[:number]:
            assert not torch.equal(replay[0], other[0])


def test_two_layers_in_a_graph_draw_different_masks(cuda: torch.device) -> None:
    tensors = leaves(cuda)
    graph, results = captured(lambda: (step(tensors)[0], step(tensors)[0]))
    for _ in range(2):
        first, second = replayed(graph, results)
        assert not torch.equal(first, second)


def test_replays_follow_manual_seed(cuda: torch.device) -> None:
    tensors = leaves(cuda)
    graph, results = captured(lambda: step(tensors))
    torch.cuda.manual_seed(5)
    first, second = replayed(graph, results), replayed(graph, results)
    torch.cuda.manual_seed(5)
    for a, b in zip(first, replayed(graph, results), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first, step(tensors, seed=5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(second[0], first[0])


def test_replays_follow_a_generator_of_their_own(cuda: torch.device) -> None:
    tensors, generator = leaves(cuda), torch.Generator(cuda)
    graph, results = captured(lambda: step(tensors, generator=generator), generator)
    before = generator_state(cuda)
    generator.manual_seed(6)
    first, second = replayed(graph, results), replayed(graph, results)
    generator.manual_seed(6)
    assert torch.equal(replayed(graph, results)[0], first[0])
    assert not torch.equal(second[0], first[0])
    check_one_mask(*second)
    assert torch.equal(generator_state(cuda), before)


def test_a_seed_is_the_same_in_every_replay(cuda: torch.device) -> None:
    tensors = leaves(cuda)

    def pure() -> tuple[Tensor, ...]:
        return (
            *step(tensors, p=0.3, seed=2**63 + 5),
            fused_dropout.mask((30, 1000), 0.3, seed=-5, offset=9, device=cuda),
        )

    expected = pure()
    graph, results = captured(pure)
    for _ in range(2):
        for a, b in zip(replayed(graph, results), expected, strict=True):
            assert torch.equal(a, b)


def test_graphed_callables(cuda: torch.device) -> None:
    """torch.cuda.make_graphed_callables captures forward and backward in two graphs."""
    layer = DropConnectLinear(INS, OUTS, bias=False, device=cuda)
    torch.nn.init.ones_(layer.weight)
    sample = ones(ROWS, INS, device=cuda, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (sample,))
    seen = []
    for _ in range(3):
        input = ones(ROWS, INS, device=cuda, requires_grad=True)
        output = graphed(input)
        gradients = torch.autograd.grad(output.sum(), (input, layer.weight))
        results = [tensor.detach().clone() for tensor in (output, *gradients)]
        check_one_mask(*results)
        seen.append(results[0])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


# ---- torch's generators


def test_a_call_takes_seed_and_offset_of_the_generator(cuda: torch.device) -> None:
    """So eager CUDA masks can be drawn again anywhere: as rng_state, and on the CPU."""
    torch.cuda.manual_seed(8)
    tensors = leaves(cuda)
    generator = torch.cuda.default_generators[cuda.index]
    for call in range(3):
        offset = generator.get_offset()
        drawn = step(tensors)
        assert generator.get_offset() > offset
        for device in (cuda, torch.device("cpu")):
            state = make_rng_state(8, offset, device)
            again = step([t.detach().to(device).requires_grad_() for t in tensors], rng_state=state)
            assert torch.equal(again[0].to(cuda), drawn[0]), f"call {call} on {device}"


def test_storage_does_not_change_what_is_drawn(cuda: torch.device) -> None:
    tensors, results = leaves(cuda), []
    for storage in ("regenerate", "packed"):
        torch.cuda.manual_seed(8)
        results.append([step(tensors, p=0.3, mask_storage=storage) for _ in range(2)])
    for drawn, stored in zip(*results, strict=True):
        for a, b in zip(drawn, stored, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("places", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_generator_of_another_device_is_refused(
    cuda: torch.device, places: tuple[str, str]
) -> None:
    generator = torch.Generator(places[0])
    operands = leaves(torch.device(places[1]))
    text = f"generator must be on the input's device.*'{places[1]}', got '{places[0]}'"
    with pytest.raises(RuntimeError, match=text):
        dropconnect_linear(*operands, generator=generator)


# ---- tensors on two devices


@pytest.mark.parametrize("moved", ["input", "weight", "bias", "rng_state"])
@pytest.mark.parametrize("places", [("cuda", "cpu"), ("cpu", "cuda")])
def test_operands_on_two_devices(cuda: torch.device, moved: str, places: tuple[str, str]) -> None:
    operands: dict[str, Any] = dict(zip(("input", "weight", "bias"), leaves(cuda), strict=True))
    operands["rng_state"] = make_rng_state(0, device=cuda)
    arguments = {name: tensor.to(places[0]) for name, tensor in operands.items()}
    arguments[moved] = arguments[moved].to(places[1])
    named = "weight" if moved == "input" else moved  # which is compared with the input's device
    with pytest.raises(RuntimeError, match=f"{named} must be on.*got"):
        dropconnect_linear(**arguments)


RAW_OPERATORS = {
    "dropconnect_linear": ("input", "weight", "bias", "rng_state", "mask_bits"),
    "dropconnect_linear_d_input": ("grad_output", "weight", "rng_state", "mask_bits"),
    "dropconnect_linear_d_weight": ("grad_output", "input", "rng_state", "mask_bits"),
    "dropconnect_linear_d_both": ("grad_output", "input", "weight", "rng_state", "mask_bits"),
    "dropconnect_linear_d_bias": ("grad_output", "rng_state"),
}


@pytest.mark.parametrize("name", RAW_OPERATORS)
def test_raw_operators_on_two_devices(cuda: torch.device, name: str) -> None:
    operator = getattr(torch.ops.fused_dropout, name)
    input, weight, bias = (tensor.detach() for tensor in leaves(cuda))
    state, grad = make_rng_state(0, device=cuda), ones(ROWS, OUTS, device=cuda)
    bits = extension.operators().dropconnect_mask_bits(weight, state, ROWS, 0.5)
    tensors = {
        "input": input, "weight": weight, "bias": bias,
        "grad_output": grad, "rng_state": state, "mask_bits": bits,
    }  # fmt: skip
    arguments = {key: tensors[key] for key in RAW_OPERATORS[name]}
    rest = {"p": 0.5, "rows_per_mask": 1, "rescale": True}
    expected = operator(**arguments, **rest)
    by_value = {**arguments, "rng_state": state.cpu()}
    torch.testing.assert_close(operator(**by_value, **rest), expected, rtol=0, atol=0)
    for moved, tensor in arguments.items():
        if moved == "rng_state":
            continue
        with pytest.raises(RuntimeError, match=f"{moved} must be .*got .*cpu"):
            operator(**{**arguments, moved: tensor.cpu()}, **rest)


def test_works_on_a_device_that_is_not_the_current_one(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1 - cuda.index)
    keys = {"p": 0.3, "seed": 3}
    expected, results = step(leaves(cuda), **keys), step(leaves(other), **keys)
    for a, b in zip(results, expected, strict=True):
        assert a.device == other
        torch.testing.assert_close(a.to(cuda), b)
    mask = fused_dropout.mask((30, 1000), 0.3, seed=3, device=other)
    assert mask.device == other
    assert torch.equal(mask.cpu(), fused_dropout.mask((30, 1000), 0.3, seed=3))
    check_one_mask(*step(leaves(other)))  # draws from that device's generator
    with pytest.raises(RuntimeError, match=f"rng_state must be on the CPU or on {other}"):
        step(leaves(other), rng_state=make_rng_state(0, device=cuda))
    assert torch.cuda.current_device() == cuda.index


# ---- memory


@pytest.mark.parametrize(("p", "limit_mib"), [(0.5, 48), (0.1, 64)])
def test_no_mask_of_bytes_is_ever_made(cuda: torch.device, p: float, limit_mib: int) -> None:
    """At Table 1's shape a mask of bytes takes 128 MiB; packed bits, where they pay, take 16."""
    input, weight = ones(128, 1024, device=cuda), ones(1024, 1024, device=cuda)
    tensors = [input.requires_grad_(), weight.requires_grad_()]
    step(tensors, p=p)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    step(tensors, p=p)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated(cuda) - before < limit_mib << 20


def needs_memory(gib: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.1f} are free")


def kept_groups(first: int, count: int, p: float, seed: int) -> Tensor:
    """The keep bits [count, 128] of groups first, first + 1, ..., from the readable reference."""
    groups = np.arange(first, first + count, dtype=np.uint64)
    fraction = np.zeros((count, reference.GROUP), dtype=np.uint64)
    for s in range(16):
        fraction = 2 * fraction + reference.fraction_digit(s, groups, seed, 0, 0)
    return torch.from_numpy(fraction < reference.threshold(p))


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_a_row_of_more_than_2_to_the_32_elements(cuda: torch.device, p: float) -> None:
    needs_memory(6)
    size = 2**32 + 1000
    mask = fused_dropout.mask(size, p, seed=7, device=cuda)
    for column in (0, 2**31 - 256, 2**32 - 256, size - size % 128 - 256):
        seen = mask[column : column + 512].cpu()
        expected = kept_groups(column // 128, 4, p, seed=7).flatten()[: len(seen)]
        assert torch.equal(seen, expected), f"from column {column}"


def test_rows_of_more_than_2_to_the_32_elements(cuda: torch.device) -> None:
    needs_memory(6)
    rows, cols = 2**25 + 3, 129
    mask = fused_dropout.mask((rows, cols), 0.5, seed=7, device=cuda)
    for row in (0, 2**24 - 1, rows - 2):
        expected = kept_groups(2 * row, 4, 0.5, seed=7).view(2, 256)[:, :cols]
        assert torch.equal(mask[row : row + 2].cpu(), expected), f"from row {row}"


def test_an_output_of_more_than_2_to_the_32_elements(cuda: torch.device) -> None:
    needs_memory(40)
    size = 2**16 + 1
    input, weight = (ones(size, 1, device=cuda, dtype=torch.float16) for _ in range(2))
    output = dropconnect_linear(input, weight, None, 0.5, seed=7)
    for row in (0, 2**15, size - 1):
        # One feature, so one group for each pair of row and output feature.
        expected = kept_groups(row * size, size, 0.5, seed=7)[:, 0]
        assert torch.equal(output[row].cpu() != 0, expected), f"row {row}"


def test_a_gradient_of_more_than_2_to_the_32_elements(cuda: torch.device) -> None:
    needs_memory(40)
    rows, features = 2, 2**31 + 5
    weight = ones(1, 1, device=cuda, dtype=torch.float16).expand(1, features)
    grad = ones(rows, 1, device=cuda, dtype=torch.float16)
    state = make_rng_state(7, device=cuda)
    d_input = torch.ops.fused_dropout.dropconnect_linear_d_input(
        grad, weight, state, 0.5, 1, True, None
    )
    groups = -(-features // 128)
    expected = kept_groups(2 * groups - 3, 3, 0.5, seed=7).flatten()
    tail = d_input[1, (groups - 3) * 128 :].cpu() != 0
    assert torch.equal(tail, expected[: len(tail)])
