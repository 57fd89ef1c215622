"""Bits that the mask contract and Philox are held to, by files of other implementations."""

from __future__ import annotations

from typing import NamedTuple

from support.paths import TESTS


class GoldenMask(NamedTuple):
    """One line of golden_masks.txt."""

    seed: int
    offset: int
    stream: int
    digits: int
    p: float
    rows: int
    cols: int
    words: list[list[int]]


def golden_masks() -> list[GoldenMask]:
    """All lines of golden_masks.txt."""
    masks = []
    for line in (TESTS / "golden_masks.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        left, right = line.split("|")
        seed, offset, stream, digits, p, rows, cols = left.split()
        words = [[int(word, 16) for word in row.split()] for row in right.split("/")]
        masks.append(
            GoldenMask(
                int(seed),
                int(offset),
                int(stream),
                int(digits),
                float(p),
                int(rows),
                int(cols),
                words,
            )
        )
    return masks


def philox_known_answers() -> list[tuple[list[int], list[int], list[int]]]:
    """(counter, key, result) of each line of philox_known_answers.txt."""
    answers = []
    for line in (TESTS / "philox_known_answers.txt").read_text().splitlines():
        if not line.startswith("#"):
            numbers = [int(word, 16) for word in line.split()]
            answers.append((numbers[:4], numbers[4:6], numbers[6:]))
    return answers
