"""Keep rates as the mask contract has them, and the conventions of where a layer applies them."""

from __future__ import annotations

from typing import Literal, get_args

# "inverted" divides by the keep rate in training, "paper" multiplies by it in evaluation.
Convention = Literal["inverted", "paper"]
INVERTED, PAPER = CONVENTIONS = get_args(Convention)

DIGITS = 16  # of a keep rate, unless an op says otherwise


def threshold(p: float, digits: int = DIGITS) -> int:
    """T = rint((1 - p) 2^digits): an element is kept if its first ``digits`` bits are below T."""
    return round((1.0 - p) * 2**digits)  # ties to even, as std::rint


def keep_rate(p: float) -> float:
    """q, the rate at which elements are kept in fact."""
    return threshold(p) / 2**DIGITS


def inverse_keep_rate(p: float) -> float:
    """1/q; see :func:`inverse`."""
    return inverse(keep_rate(p))


def inverse(q: float) -> float:
    """1/q; 1 where nothing is kept, so that nothing is scaled."""
    return 1.0 / q if q > 0 else 1.0


def philox_calls(p: float) -> int:
    """Philox calls for 128 mask bits: the binary digits of q; 0 where nothing is drawn."""
    t = threshold(p)
    trailing_zeros = (t & -t).bit_length() - 1
    return DIGITS - trailing_zeros if 0 < t < 2**DIGITS else 0
