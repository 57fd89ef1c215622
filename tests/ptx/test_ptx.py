"""The PTX that nvcc emits for the CUDA kernels, run by the interpreter in tests/ptx."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.accuracy import is_accurate, own_and_truth
from support.dropconnect import random_operands
from support.golden import GoldenMask, golden_masks
from support.kernel_memory import bytes_of
from support.tensors import DTYPES

import fused_dropout
from fused_dropout import reference
from ptx.compile import Build
from ptx.device import Device, Layer, corrupted
from ptx.dropconnect import OFFSET, PRODUCTS, SEED, Case, DropConnect, state, stored_masks
from ptx.machine import Launch, Machine
from ptx.memory import POISON, GlobalMemory, Numbers
from ptx.parse import PtxError, parse

STREAM = 3
MANY_BLOCKS = 1 << 14


# ---- masks


def packed(
    device: Device, shape: tuple[int, int], p: float, rng_state: int, stream: int, digits: int
) -> Numbers:
    """The mask's words as draw_packed_kernel (or draw_groups_kernel) packs them."""
    words = -(-shape[1] // 32)
    out = device.poisoned(np.uint32, shape[0], words)
    arguments = (rng_state, stream, p, digits, 0, *shape, out, MANY_BLOCKS)
    assert device.call("draw_packed", *arguments) == 0
    return device.get(out, np.uint32, shape[0], words)


def as_bytes(
    device: Device, shape: tuple[int, int], p: float, rng_state: int, stream: int, digits: int
) -> Numbers:
    """The mask's bytes as draw_bytes_kernel writes them."""
    out = device.poisoned(np.uint8, *shape)
    arguments = (rng_state, stream, p, digits, 0, *shape, out, MANY_BLOCKS)
    assert device.call("draw_bytes", *arguments) == 0
    return device.get(out, np.uint8, *shape)


def on_cpu(shape: tuple[int, int], p: float, digits: int) -> Numbers:
    """The words that the CPU kernels draw."""
    mask = fused_dropout.packed_mask(
        shape, p, seed=SEED, offset=OFFSET, stream=STREAM, digits=digits
    )
    return mask.numpy()


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_golden_masks(ptx_device: Device, golden: GoldenMask) -> None:
    shape = (golden.rows, golden.cols)
    rule = (golden.p, state(ptx_device, golden.seed, golden.offset), golden.stream, golden.digits)
    words = packed(ptx_device, shape, *rule)
    assert words.tolist() == golden.words
    assert np.array_equal(as_bytes(ptx_device, shape, *rule), bytes_of(words, golden.cols))


@pytest.mark.parametrize(("p", "digits"), [(0.5, 16), (0.3, 16), (0.7, 31), (0.0, 16), (1.0, 16)])
@pytest.mark.parametrize("cols", [1, 31, 32, 112, 127, 128, 129, 256, 400])
def test_masks_are_the_cpu_s(ptx_device: Device, cols: int, p: float, digits: int) -> None:
    for rows in (1, 5):
        expected = on_cpu((rows, cols), p, digits)
        rule = (p, state(ptx_device), STREAM, digits)
        assert np.array_equal(packed(ptx_device, (rows, cols), *rule), expected)
        assert np.array_equal(as_bytes(ptx_device, (rows, cols), *rule), bytes_of(expected, cols))


@pytest.mark.parametrize("max_blocks", [1, MANY_BLOCKS])
@pytest.mark.parametrize(("first", "stride"), [(0, 1), (2**32 - 4, 7), (2**47, 2**33 + 1)])
def test_groups(ptx_device: Device, first: int, stride: int, max_blocks: int) -> None:
    count = 300
    out = ptx_device.poisoned(np.uint32, count, 4)
    arguments = (state(ptx_device), STREAM, 0.25, 16, first, stride, count, out, max_blocks)
    assert ptx_device.call("draw_groups", *arguments) == 0
    groups = np.uint64(first) + np.uint64(stride) * np.arange(count, dtype=np.uint64)
    digits = [reference.fraction_digit(s, groups, SEED, OFFSET, STREAM) for s in (0, 1)]
    kept = 2 * digits[0] + digits[1] < 3
    expected = np.packbits(kept, axis=1, bitorder="little").view("<u4")
    assert np.array_equal(ptx_device.get(out, np.uint32, count, 4), expected)


# ---- DropConnect

# rows, in_features, out_features, rows_per_mask; p. Edges of groups, tiles, chunks and slices.
LAYERS: tuple[Case, ...] = (
    ((1, 1, 1, 1), 0.5),
    ((5, 130, 7, 1), 0.5),
    ((33, 128, 65, 1), 0.25),
    ((40, 257, 66, 7), 0.3),
    ((70, 31, 33, 1), 1.0),
)


def matches_reference(
    device: Device,
    case: Case,
    dtype: torch.dtype = torch.float32,
    stored: bool = False,
    products: tuple[str, ...] = PRODUCTS,
) -> dict[str, bool]:
    """For each product, whether its error is at most twice torch's own, plus two ulps."""
    sizes, p = case
    rows, in_features, out_features, rows_per_mask = sizes
    operands = random_operands((rows, in_features), out_features, dtype)
    layer = DropConnect(device, sizes, p, operands, stored)
    ours = {name: layer.product(name) for name in products}
    keys = {"p": p, "mask": rows_per_mask, "seed": SEED, "offset": OFFSET}
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keys)
    return {
        name: is_accurate(ours[name], b, t)
        for name, b, t in zip(PRODUCTS, own, truth, strict=True)
        if name in ours
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers_match_reference(ptx_device: Device, case: Case, dtype: torch.dtype) -> None:
    assert matches_reference(ptx_device, case, dtype) == dict.fromkeys(PRODUCTS, True)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_stored_masks_are_the_cpu_s(ptx_device: Device, case: Case) -> None:
    sizes, p = case
    expected = stored_masks(sizes, p)
    bits = ptx_device.poisoned(np.uint32, *expected.shape)
    assert ptx_device.call("store_masks", state(ptx_device), Layer(*sizes), p, bits) == 0
    found = ptx_device.get(bits, np.uint32, *expected.shape)
    outs = sizes[2]  # those past it are never looked at
    assert np.array_equal(found[:, :, :outs], expected[:, :, :outs])


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers_with_stored_masks(ptx_device: Device, case: Case) -> None:
    assert all(matches_reference(ptx_device, case, stored=True).values())


@pytest.mark.parametrize("column", [0, 31, 127, 128, 199])
def test_layers_use_the_contract_s_masks(ptx_device: Device, column: int) -> None:
    """With one-hot rows and unit weights the output shows the mask itself, bit for bit."""
    kept = fused_dropout.mask((5 * 70, 200), 0.3, seed=SEED, offset=OFFSET)
    expected = kept.view(5, 70, 200)[torch.arange(9) // 2, :, column]
    input = torch.zeros(9, 200)
    input[:, column] = 1
    operands = (input, torch.ones(70, 200), torch.zeros(70), torch.ones(9, 70))
    layer = DropConnect(ptx_device, (9, 200, 70, 2), 0.3, operands)
    assert torch.equal(layer.product("forward") != 0, expected)
    q = reference.keep_rate(0.3)
    torch.testing.assert_close(layer.product("d_input")[:, column], expected.sum(1) / q)


# ---- the inline PTX of csrc/cuda/compat.h


@pytest.mark.parametrize("bytes_each", [4, 8, 16])
@pytest.mark.parametrize("left_out", [0, 1, 4])
def test_copy_async(ptx_device: Device, bytes_each: int, left_out: int) -> None:
    """Copies land at the wait for their group, not sooner; bytes past the valid ones are 0."""
    valid = bytes_each - left_out
    source = np.arange(64 * bytes_each, dtype=np.uint8).reshape(2, 32, bytes_each)
    results = ptx_device.poisoned(np.uint8, 32, 3, bytes_each)
    assert ptx_device.call("copy_async", bytes_each, ptx_device.put(source), valid, results) == 0
    first, too_early, second = np.moveaxis(
        ptx_device.get(results, np.uint8, 32, 3, bytes_each), 1, 0
    )
    assert np.array_equal(first, source[0])
    assert (too_early == POISON).all()
    assert np.array_equal(second[:, :valid], source[1, :, :valid])
    assert (second[:, valid:] == 0).all()


# ---- the comparisons notice a wrong instruction


MASK_CORRUPTIONS = {
    "multiplier of Philox": (r"3528531795", "3528531797"),
    "key schedule": (r"add\.s32 (\s*%r\d+, %r\d+), 10", r"add.s32 \1, 11"),
    "digit of T": (r"shl\.b32 (\s*%r\d+, %r\d+), %r\d+;", r"shl.b32 \1, 0;"),
    "xor as and": (r"xor\.b32", "and.b32"),
    "halves of a product": (
        r"mov\.b64 \{(%r\d+), (%r\d+)\}, (%rd\d+);",
        r"mov.b64 {\2, \1}, \3;",
    ),
    "open elements": (r"and\.b32 (\s*%r\d+, %r\d+), %r\d+;", r"and.b32 \1, -1;"),
    "address": (r"\[(%rd\d+)\+4\], ", r"[\1+8], "),
}
PRODUCT_CORRUPTIONS = {
    "operands of fma": (r"fma\.rn\.f32 (\s*%f\d+, %f\d+), %f\d+,", r"fma.rn.f32 \1, %f0,"),
    "bit of the mask": (r"and\.b32 (\s*%r\d+, %r\d+), 1024;", r"and.b32 \1, 2048;"),
    "sense of the branch": (
        r"setp\.eq\.s32(.*, 0;\s*@%p\d+ bra\s+\S+\s*fma)",
        r"setp.ne.s32\1",
    ),
}
KERNELS = {
    "forward": "forward_kernelIfLb0ELb0",
    "d_input": "gradients_kernelIfLb0",
    "d_weight": "gradients_kernelIfLb0",
}
NO_CHANGE = ("add", "add")


def mask_is_right(device: Device) -> bool:
    """Of rates with one digit and with many, after which some groups go from lane to lane."""
    return all(
        np.array_equal(
            packed(device, (5, 148), p, state(device), STREAM, 16), on_cpu((5, 148), p, 16)
        )
        for p in (0.5, 0.3)
    )


def product_is_right(device: Device, product: str) -> bool:
    return matches_reference(device, ((33, 128, 65, 1), 0.5), products=(product,))[product]


@pytest.mark.parametrize("corruption", MASK_CORRUPTIONS)
def test_a_corrupted_mask_kernel_is_noticed(build: Build, corruption: str) -> None:
    assert mask_is_right(corrupted(build, "draw_packed_kernelILi1", *NO_CHANGE))
    change = MASK_CORRUPTIONS[corruption]
    assert not mask_is_right(corrupted(build, "draw_packed_kernelILi1", *change))


@pytest.mark.parametrize("product", KERNELS)
@pytest.mark.parametrize("corruption", PRODUCT_CORRUPTIONS)
def test_a_corrupted_product_is_noticed(build: Build, product: str, corruption: str) -> None:
    """One kernel computes both gradients, d_weight by its last instructions."""
    assert product_is_right(corrupted(build, KERNELS[product], *NO_CHANGE), product)
    change = PRODUCT_CORRUPTIONS[corruption]
    device = corrupted(build, KERNELS[product], *change, last=product == "d_weight")
    assert not product_is_right(device, product)


A_THREAD_LEAVES = r""".reg .b32 %lane; .reg .pred %first;
    mov.u32 %lane, %tid.x;
    setp.eq.u32 %first, %lane, 0;
    @%first bra PAST;
    bar.sync 0;
PAST:
    mov.u32 %lane, 0"""  # the semicolon of the barrier follows


@pytest.mark.parametrize("product", KERNELS)
def test_a_thread_that_misses_a_barrier_is_noticed(build: Build, product: str) -> None:
    device = corrupted(build, KERNELS[product], r"bar\.sync\s+0", A_THREAD_LEAVES)
    with pytest.raises(PtxError, match=r"not all threads reach the same bar\.sync"):
        product_is_right(device, product)


# ---- the interpreter, on PTX that needs no nvcc


SAMPLE = """
.visible .entry sample(.param .u64 sample_param_0)
{
  .reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .f32 %f<4>;
  .shared .align 4 .b8 tile[256];
  ld.param.u64 %rd0, [sample_param_0];
  BODY
  ret;
}
"""


def interpreted(
    body: str, threads: int = 1, memory: GlobalMemory | None = None, address: int = 0
) -> Machine:
    """A machine that has run SAMPLE with `body`, which finds the address in %rd0."""
    text = SAMPLE.replace("BODY", body)
    launch = Launch((1, 1, 1), (threads, 1, 1), 0, (address.to_bytes(8, "little"),))
    machine = Machine(parse(text)["sample"], launch, memory or GlobalMemory())
    machine.run()
    return machine


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("div.s32 %r1, -7, 2;", -3),
        ("div.s32 %r1, 7, -2;", -3),
        ("rem.s32 %r1, -7, 2;", -1),
        ("div.u32 %r1, -7, 2;", 2147483644),
        ("shr.s32 %r1, -8, 40;", -1),
        ("shr.u32 %r1, -8, 40;", 0),
        ("shl.b32 %r1, 1, 32;", 0),
        ("shl.b32 %r1, 1, 31;", -(2**31)),
        ("min.s32 %r1, -1, 1;", -1),
        ("min.u32 %r1, -1, 1;", 1),
        ("mul.hi.u32 %r1, -1, -1;", -2),
        ("mul.hi.s32 %r1, -1, 5;", -1),
        ("mul.wide.s32 %rd1, -3, 5; shr.u64 %rd1, %rd1, 32; cvt.u32.u64 %r1, %rd1;", -1),
        ("mul.wide.u32 %rd1, -3, 5; shr.u64 %rd1, %rd1, 32; cvt.u32.u64 %r1, %rd1;", 4),
        ("mul.hi.u64 %rd1, -1, -1; cvt.u32.u64 %r1, %rd1;", -2),
        ("mul.hi.u64 %rd1, 0x8000000000000001, 0x300000002; cvt.u32.u64 %r1, %rd1;", -(2**31) + 1),
        ("shf.r.wrap.b32 %r1, 0x80000000, 5, 31;", 11),
        ("shf.r.wrap.b32 %r1, 7, 5, 32;", 7),
        ("mad.lo.s32 %r1, 65536, 65536, -9;", -9),
        ("neg.s32 %r1, 5;", -5),
        ("not.b32 %r1, 5;", -6),
        ("popc.b32 %r1, 0x80000007;", 4),
        ("bfi.b32 %r1, 0xFF5, 0x1234, 4, 8;", 0x1F54),
        ("setp.lt.s32 %p1, -1, 0; selp.b32 %r1, 3, 4, %p1;", 3),
        ("setp.lt.u32 %p1, -1, 0; selp.b32 %r1, 3, 4, %p1;", 4),
        ("setp.neu.f32 %p1, 0f7FC00000, 0f7FC00000; selp.b32 %r1, 3, 4, %p1;", 3),
        ("setp.gt.f32 %p1, 0f7FC00000, 0f00000000; selp.b32 %r1, 3, 4, %p1;", 4),
        ("mov.b64 %rd1, {7, 9}; mov.b64 {%r2, %r1}, %rd1;", 9),
        ("mov.u32 %r2, 65535; cvt.s32.s16 %r1, %r2;", -1),
        ("mov.u32 %r2, 65535; cvt.u32.u16 %r1, %r2;", 65535),
        ("mov.f32 %f1, 0f3F800000; fma.rn.f32 %f1, %f1, %f1, %f1; mov.b32 %r1, %f1;", 0x40000000),
        ("mov.f32 %f1, 0f3F80FFFF; cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r1, %rs1;", 0x3F81),
        ("mov.f32 %f1, 0f3F808000; cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r1, %rs1;", 0x3F80),
        ("mov.f32 %f1, 0f3F800000; cvt.rn.f16.f32 %rs1, %f1; cvt.u32.u16 %r1, %rs1;", 0x3C00),
    ],
)
def test_instructions(body: str, expected: int) -> None:
    assert interpreted(body).read("%r1", "s32").tolist() == [expected]


def test_shuffle() -> None:
    """Lane t gets the number of lane t ^ 5, of its own warp."""
    machine = interpreted(
        "mov.u32 %r0, %tid.x; shfl.sync.bfly.b32 %r1|%p1, %r0, 5, 31, -1; @!%p1 mov.u32 %r1, 0;",
        threads=64,
    )
    assert machine.read("%r1", "u32").tolist() == [lane ^ 5 for lane in range(64)]


def test_ballot() -> None:
    """Odd lanes of the first warp, all but lane 2 of the second."""
    machine = interpreted(
        """mov.u32 %r0, %tid.x; and.b32 %r2, %r0, 33; setp.ne.u32 %p1, %r2, 0;
        setp.ne.u32 %p2, %r0, 34; and.pred %p1, %p1, %p2; vote.sync.ballot.b32 %r1, %p1, -1;""",
        threads=64,
    )
    assert machine.read("%r1", "u32").tolist() == [0xAAAAAAAA] * 32 + [0xFFFFFFFB] * 32


def test_threads_part_and_meet_again() -> None:
    """Thread t loops t times, then they hand numbers on through shared memory."""
    machine = interpreted(
        """mov.u32 %r0, %tid.x; mov.u32 %r2, 0;
        LOOP: setp.ge.u32 %p1, %r2, %r0; @%p1 bra DONE;
        add.u32 %r2, %r2, 1; bra.uni LOOP;
        DONE: shl.b32 %r3, %r0, 2; mov.u32 %r4, tile; add.u32 %r4, %r4, %r3;
        st.shared.u32 [%r4], %r2; bar.sync 0;
        xor.b32 %r3, %r3, 252; ld.shared.u32 %r1, [%r3];""",
        threads=64,
    )
    assert machine.read("%r1", "u32").tolist() == list(range(63, -1, -1))


def test_generic_addresses_of_shared_memory() -> None:
    machine = interpreted(
        """mov.u64 %rd1, tile; cvta.shared.u64 %rd2, %rd1; st.u32 [%rd2+4], 42;
        ld.shared.u32 %r1, [tile+4]; cvta.to.shared.u64 %rd3, %rd2; sub.u64 %rd3, %rd3, %rd1;"""
    )
    assert machine.read("%r1", "u32").tolist() == [42]
    assert machine.read("%rd3", "u64").tolist() == [0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.u32 %r1, [%rd0+16];", "global access out of bounds"),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+-16];", "global access out of bounds"),
        ("st.global.v2.u32 [%rd0+4], {%r1, %r2};", "misaligned global access of 8 bytes"),
        ("st.shared.u32 [tile+256], %r1;", "shared access out of bounds"),
        ("brkpt;", "unsupported instruction"),
        ("add.sat.s32 %r1, %r1, 1;", "unsupported instruction"),
        ("bar.sync 1;", "unsupported barrier"),
        ("shfl.sync.bfly.b32 %r1|%p1, %r0, 1, 31, 3;", "less than a warp"),
        ("vote.sync.ballot.b32 %r1, %p1, 3;", "less than a warp"),
        ("LOOP: bra LOOP;", "endless loop"),
    ],
)
def test_faults_are_reported(monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    monkeypatch.setattr("ptx.machine.MAX_STEPS", 1000)
    memory = GlobalMemory()
    with pytest.raises(PtxError, match=message):
        interpreted(body, memory=memory, address=memory.put(np.zeros(4, np.int32)))
