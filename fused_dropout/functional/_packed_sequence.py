"""Operations on padded sequences, applied to packed ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


def on_padded(
    function: Callable[[Tensor], Tensor], packed: PackedSequence, inplace: bool
) -> PackedSequence:
    """``function`` of the padded sequences ``[T, N, ...]``, packed as ``packed`` is.

    ``inplace``: the result is written into the data of ``packed``.
    """
    result = function(pad_packed_sequence(packed)[0])
    if packed.sorted_indices is not None:
        result = result.index_select(1, packed.sorted_indices)
    # Step t has a row for each of the batch_sizes[t] sequences that are long enough.
    rows = packed.batch_sizes
    present = torch.arange(int(rows[0])) < rows[:, None]
    step, row = (index.to(result.device) for index in present.nonzero(as_tuple=True))
    data = result[step, row]
    return packed._replace(data=packed.data.copy_(data) if inplace else data)
