"""The convolutions of DropConnect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._core import checks
from fused_dropout._core.rates import CONVENTIONS, Convention
from fused_dropout.functional import _dropconnect_conv as functional


class _DropConnectConv(torch.nn.Module):
    """What the layers add to torch's."""

    drops_in_training = True  # for fused_dropout.mc_dropout
    _function: ClassVar[Callable[..., Tensor]]

    # torch's
    weight: Tensor
    bias: Tensor | None
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any  # a tuple, or one of PADDINGS
    dilation: tuple[int, ...]
    groups: int
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | functional.Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        p: float = 0.5,
        *,
        mask: functional.ConvMask | int = "example",
        convention: Convention = "inverted",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_bool(bias, "bias")
        p = checks.check_probability(p)
        checks.check_mask_mode(mask, functional.CONV_MASKS, "examples")
        if isinstance(padding, str):
            checks.check_choice(padding, "padding", functional.PADDINGS)
        checks.check_choice(convention, "convention", CONVENTIONS)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.p = p
        self.mask = mask
        self.convention = convention

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._pads(), mode=self.padding_mode)
            padding = 0
        return self._function(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.p,
            self.training,
            mask=self.mask,
            convention=self.convention,
        )

    def _pads(self) -> list[int]:
        """As torch.nn.functional.pad has them: the last dimension first, before and behind."""
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            both = [(total // 2, total - total // 2) for total in totals]
        elif isinstance(self.padding, str):
            both = [(0, 0)] * len(self.kernel_size)
        else:
            both = [(pad, pad) for pad in self.padding]
        return [pad for pair in reversed(both) for pad in pair]

    def extra_repr(self) -> str:
        shown = f"{super().extra_repr()}, p={self.p}, mask={self.mask!r}"
        return (
            shown if self.convention == "inverted" else f"{shown}, convention={self.convention!r}"
        )


class DropConnectConv1d(_DropConnectConv, torch.nn.Conv1d):
    """A one-dimensional convolution whose every weight and bias is dropped in training.

    Replaces :class:`torch.nn.Conv1d`: same parameters, initialisation and state_dict. Every example
    draws masks of its own, anew in every call; in evaluation it is the plain convolution. The layer
    calls :func:`fused_dropout.functional.dropconnect_conv1d`.

    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: of the kernel, an int or a sequence of one.
        stride, dilation: an int or a sequence of one.
        padding: added to both sides, an int or a sequence of one; ``"valid"`` is none,
            ``"same"`` as much as gives the output the size of the input, where stride is 1.
        groups: of channels; each group's output channels see its input channels only.
        bias: whether there is a bias.
        padding_mode: what is added: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        p: drop probability in [0, 1].
        mask: the examples that share a mask: ``"example"`` (none), ``"batch"`` (all), or an int of
            at least 1: that many consecutive examples.
        convention: ``"inverted"`` divides by the keep rate in training; ``"paper"`` multiplies by
            it in evaluation instead.
        device: of the parameters; default: torch's default device.
        dtype: of the parameters; default: torch's default dtype.

    Shape:
        input: ``[N, in_channels, L]``, or without N.
        output: ``[N, out_channels, L_out]``.

    Raises:
        ValueError: p, mask or convention out of range, and what :class:`torch.nn.Conv1d` refuses.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropconnect_conv1d`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.DropConnectConv1d(4, 8, 3, padding=1, p=0.5)
        >>> layer(torch.ones(2, 4, 10)).shape
        torch.Size([2, 8, 10])
    """

    _function = staticmethod(functional.dropconnect_conv1d)


class DropConnectConv2d(_DropConnectConv, torch.nn.Conv2d):
    """A two-dimensional convolution whose every weight and bias is dropped in training.

    Replaces :class:`torch.nn.Conv2d`: same parameters, initialisation and state_dict. Every example
    draws masks of its own, anew in every call; in evaluation it is the plain convolution. The layer
    calls :func:`fused_dropout.functional.dropconnect_conv2d`.

    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: of the kernel, an int or two.
        stride, dilation: an int or two.
        padding: added to both sides, an int or two; ``"valid"`` is none,
            ``"same"`` as much as gives the output the size of the input, where stride is 1.
        groups: of channels; each group's output channels see its input channels only.
        bias: whether there is a bias.
        padding_mode: what is added: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        p: drop probability in [0, 1].
        mask: the examples that share a mask: ``"example"`` (none), ``"batch"`` (all), or an int of
            at least 1: that many consecutive examples.
        convention: ``"inverted"`` divides by the keep rate in training; ``"paper"`` multiplies by
            it in evaluation instead.
        device: of the parameters; default: torch's default device.
        dtype: of the parameters; default: torch's default dtype.

    Shape:
        input: ``[N, in_channels, H, W]``, or without N.
        output: ``[N, out_channels, H_out, W_out]``.

    Raises:
        ValueError: p, mask or convention out of range, and what :class:`torch.nn.Conv2d` refuses.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropconnect_conv2d`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.DropConnectConv2d(4, 8, 3, padding=1, p=0.5)
        >>> layer(torch.ones(2, 4, 10, 10)).shape
        torch.Size([2, 8, 10, 10])
    """

    _function = staticmethod(functional.dropconnect_conv2d)


class DropConnectConv3d(_DropConnectConv, torch.nn.Conv3d):
    """A three-dimensional convolution whose every weight and bias is dropped in training.

    Replaces :class:`torch.nn.Conv3d`: same parameters, initialisation and state_dict. Every example
    draws masks of its own, anew in every call; in evaluation it is the plain convolution. The layer
    calls :func:`fused_dropout.functional.dropconnect_conv3d`.

    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: of the kernel, an int or three.
        stride, dilation: an int or three.
        padding: added to both sides, an int or three; ``"valid"`` is none,
            ``"same"`` as much as gives the output the size of the input, where stride is 1.
        groups: of channels; each group's output channels see its input channels only.
        bias: whether there is a bias.
        padding_mode: what is added: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        p: drop probability in [0, 1].
        mask: the examples that share a mask: ``"example"`` (none), ``"batch"`` (all), or an int of
            at least 1: that many consecutive examples.
        convention: ``"inverted"`` divides by the keep rate in training; ``"paper"`` multiplies by
            it in evaluation instead.
        device: of the parameters; default: torch's default device.
        dtype: of the parameters; default: torch's default dtype.

    Shape:
        input: ``[N, in_channels, D, H, W]``, or without N.
        output: ``[N, out_channels, D_out, H_out, W_out]``.

    Raises:
        ValueError: p, mask or convention out of range, and what :class:`torch.nn.Conv3d` refuses.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropconnect_conv3d`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.DropConnectConv3d(4, 8, 3, padding=1, p=0.5)
        >>> layer(torch.ones(2, 4, 5, 6, 7)).shape
        torch.Size([2, 8, 5, 6, 7])
    """

    _function = staticmethod(functional.dropconnect_conv3d)
