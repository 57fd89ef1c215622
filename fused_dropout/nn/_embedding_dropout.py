"""An embedding that drops whole words in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._core import checks


class EmbeddingDropout(torch.nn.Embedding):
    """An embedding whose every row is dropped with probability ``p`` in training.

    Replaces :class:`torch.nn.Embedding`: same parameter, initialisation and state_dict. In every
    call a word is dropped wherever it occurs in the batch, or nowhere, and the others are divided
    by the keep rate; in evaluation it is the plain embedding. The layer calls
    :func:`fused_dropout.functional.embedding_dropout`, which touches only the rows looked up.

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NeurIPS 2016; ``embedded_dropout`` of AWD-LSTM, fastai's ``EmbeddingDropout``.

    Args:
        num_embeddings: the number of rows.
        embedding_dim: their length.
        padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: as of
            :class:`torch.nn.Embedding`.
        p: drop probability in [0, 1].
        device: of the parameter; default: torch's default device.
        dtype: of the parameter; default: torch's default dtype.
        _weight, _freeze: for :meth:`from_pretrained`, as of :class:`torch.nn.Embedding`.

    Shape:
        input: indices, any shape; output: ``[*input.shape, embedding_dim]``.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError, IndexError: when called, an input that
            :func:`fused_dropout.functional.embedding_dropout` refuses.

    Example:
        >>> from fused_dropout import nn
        >>> nn.EmbeddingDropout(1000, 16, p=0.1)
        EmbeddingDropout(1000, 16, p=0.1)
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        p: float = 0.5,
        device: Any = None,
        dtype: torch.dtype | None = None,
        _weight: Tensor | None = None,
        _freeze: bool = False,
    ) -> None:
        p = checks.check_probability(p)
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            checks.check_bool(scale_grad_by_freq, "scale_grad_by_freq"),
            checks.check_bool(sparse, "sparse"),
            _weight,
            _freeze,
            device=device,
            dtype=dtype,
        )
        self.p = p

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, *args: Any, p: float = 0.5, **kwargs: Any
    ) -> EmbeddingDropout:
        """A layer with these rows.

        Args:
            embeddings: ``[num_embeddings, embedding_dim]``.
            args, kwargs: as of :meth:`torch.nn.Embedding.from_pretrained`, whose ``freeze`` is True
                unless given.
            p: drop probability in [0, 1].
        """
        p = checks.check_probability(p)
        layer: EmbeddingDropout = super().from_pretrained(embeddings, *args, **kwargs)
        layer.p = p
        return layer

    def forward(self, input: Tensor) -> Tensor:
        return functional.embedding_dropout(
            input,
            self.weight,
            self.p,
            self.training,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
