"""csrc/common stands alone: it compiles without torch or CUDA and gives the contract's bits.

The scalar functions tested here are the ones that the CUDA kernels call. The headers of those
kernels can be included together.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.compiling import compiler, shared_library
from support.golden import GoldenMask, golden_masks, philox_known_answers
from support.paths import ROOT, TESTS

from fused_dropout import reference

COMMON = ROOT / "csrc" / "common"
SOURCE = """
#include "mask.h"
using namespace fused_dropout;
extern "C" void philox(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  uint32_t calls[1][4] = {{counter[0], counter[1], counter[2], counter[3]}};
  philox4x32_10(calls, philox_keys<uint32_t>(key[0], key[1], [](uint32_t k) { return k; }));
  for (int w = 0; w < 4; ++w) out[w] = calls[0][w];
}
extern "C" void group(uint64_t seed, uint64_t offset, uint32_t stream, double p, int digits,
                      uint64_t index, uint32_t* out) {
  const GroupBits bits = keep_group(make_mask_rule(seed, offset, stream, p, digits), index);
  for (int w = 0; w < 4; ++w) out[w] = bits.word[w];
}
"""
Words4 = ctypes.c_uint32 * 4


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", f"-I{COMMON}")
    return shared_library(SOURCE, tmp_path_factory.mktemp("common"), *flags)


def draw_group(library: ctypes.CDLL, mask: GoldenMask, index: int) -> list[int]:
    out = Words4()
    library.group(
        ctypes.c_uint64(mask.seed),
        ctypes.c_uint64(mask.offset),
        mask.stream,
        ctypes.c_double(mask.p),
        mask.digits,
        ctypes.c_uint64(index),
        out,
    )
    return list(out)


@pytest.mark.parametrize(("counter", "key", "result"), philox_known_answers())
def test_philox_known_answers(
    library: ctypes.CDLL, counter: list[int], key: list[int], result: list[int]
) -> None:
    out = Words4()
    library.philox(Words4(*counter), (ctypes.c_uint32 * 2)(*key), out)
    assert list(out) == result


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_keep_group_matches_golden(library: ctypes.CDLL, golden: GoldenMask) -> None:
    groups = -(-golden.cols // 128)
    for row in range(golden.rows):
        words = []
        for g in range(groups):
            words += draw_group(library, golden, row * groups + g)
        words = words[: -(-golden.cols // 32)]
        if golden.cols % 32:
            words[-1] &= (1 << golden.cols % 32) - 1
        assert words == golden.words[row]


@pytest.mark.parametrize("index", [2**32 - 1, 2**32, 2**40 + 12345, 2**48 - 1])
def test_group_numbers_past_32_bits(library: ctypes.CDLL, index: int) -> None:
    mask = GoldenMask(seed=9, offset=1, stream=2, digits=1, p=0.5, rows=1, cols=128, words=[])
    groups = np.array([index], dtype=np.uint64)
    digit = reference.fraction_digit(0, groups, mask.seed, mask.offset, mask.stream)[0]
    kept = np.packbits(1 - digit, bitorder="little").view("<u4")
    assert draw_group(library, mask, index) == kept.tolist()


def test_cuda_headers_can_be_included_together(tmp_path: Path) -> None:
    headers = sorted((COMMON.parent / "cuda").glob("*.cuh"))
    assert len(headers) > 10
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{header}"\n' for header in headers))
    command = [compiler(), "-std=c++17", "-fsyntax-only", f"-I{TESTS / 'cuda_on_cpu'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
