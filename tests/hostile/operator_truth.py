"""What each raw operator computes, by the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_dropout import reference
from fused_dropout.reference._noise import noise_words, normals_of_words, uniforms_of_words

from .call import Tensors
from .dropconnect_functions import as_in_sums
from .functions import packed

Settings = dict[str, Any]
Truth = Callable[[Tensors, Settings], tuple[Tensor, ...]]


def stored_shape(shape: tuple[int, ...], outs: int, rows_per_mask: int) -> tuple[int, ...]:
    """The shape of DropConnect's stored masks for an input of ``shape``."""
    rows, ins = shape
    return (-(-ins // 128), -(-rows // rows_per_mask), -(-outs // 8) * 8, 4)


def _state(s: Settings) -> dict[str, int]:
    return {"seed": s["seed"], "offset": s["offset"]}


def _unpacked(words: Tensor) -> Tensor:
    """The bits of int32 words along the last dimension, the lowest first."""
    places = torch.arange(32, dtype=torch.int32)
    return (words[..., None] >> places & 1).bool().flatten(-2)


def _mask(t: Tensors, s: Settings) -> tuple[Tensor]:
    size = (s["rows"], s["cols"])
    return (reference.mask(size, s["p"], **_state(s), stream=s["stream"], digits=s["digits"]),)


def _packed_mask(t: Tensors, s: Settings) -> tuple[Tensor]:
    return (packed(_mask(t, s)[0]).view(torch.int32),)


def _noise(draw: Callable[[NDArray[np.uint32]], NDArray[np.float64]]) -> Truth:
    def truth(t: Tensors, s: Settings) -> tuple[Tensor]:
        count = math.prod(s["size"])
        words = noise_words(count + count % 2, **_state(s), first=s["first"])
        return (torch.as_tensor(draw(words)[:count]).reshape(s["size"]).to(s["dtype"]),)

    return truth


def _dropout(t: Tensors, s: Settings) -> tuple[Tensor]:
    x = t["input"]
    kept = reference.dropout(torch.ones(x.shape), s["p"], broadcast_dims=s["shared_dims"],
                             convention="paper", **_state(s)).bool()  # fmt: skip
    out = torch.where(kept, s["scale"] * x + s["shift"], s["fill"])
    return (out + t["residual"] if "residual" in t else out,)


def _gaussian_dropout(t: Tensors, s: Settings) -> tuple[Tensor]:
    x = t["input"]
    return (x * (1 + s["sigma"] * reference.normal_noise(x.shape, **_state(s)).to(x.dtype)),)


def _gaussian_noise(t: Tensors, s: Settings) -> tuple[Tensor]:
    return (reference.gaussian_noise(t["mean"], t["variance"], eps=s["eps"], **_state(s)),)


def _gaussian_noise_d_variance(t: Tensors, s: Settings) -> tuple[Tensor]:
    g, variance = t["grad_output"], t["variance"]
    z = reference.normal_noise(g.shape, **_state(s)).to(g.dtype)
    return (g * z / (2 * (variance + s["eps"]).sqrt()),)


def _concrete_dropout(t: Tensors, s: Settings) -> tuple[Tensor]:
    x, logit_p = t["input"], t["logit_p"]
    wide = x.to(logit_p.dtype)
    out = reference.concrete_dropout(wide, logit_p, s["temperature"],
                                     broadcast_dims=s["shared_dims"], **_state(s))  # fmt: skip
    return (out.to(x.dtype),)


def _concrete_dropout_backward(t: Tensors, s: Settings) -> tuple[Tensor, ...]:
    return _gradients(_concrete_dropout, t, s, ("input", "logit_p"))


def _bias_act_dropout_add(t: Tensors, s: Settings) -> tuple[Tensor]:
    x = t["input"]
    out = reference.ACTIVATIONS[s["activation"]](x + t["bias"] if "bias" in t else x)
    kept = reference.mask(x.numel(), s["p"], **_state(s)).view(x.shape)
    out = torch.where(kept, out * s["scale"], 0.0)
    return (t["residual"] + out if "residual" in t else out,)


def _bias_act_dropout_add_d_input(t: Tensors, s: Settings) -> tuple[Tensor, ...]:
    full = {"input": torch.zeros_like(t["grad_output"]), **t}  # it matters to no gradient of none
    return _gradients(_bias_act_dropout_add, full, s, ("input",))


def _bias_act_dropout_add_d_both(t: Tensors, s: Settings) -> tuple[Tensor, ...]:
    g = t["grad_output"]
    bias = torch.zeros(g.shape[-1:], dtype=g.dtype)
    full = {"input": torch.zeros_like(g), "bias": bias, **t}
    return _gradients(_bias_act_dropout_add, full, s, ("input", "bias"))


def _drop_block_mask(t: Tensors, s: Settings) -> tuple[Tensor, Tensor]:
    shape = list(t["input"].shape)
    shape[1] = 1 if s["share_channels"] else shape[1]
    block = [min(side, size) for side, size in zip(s["block"], shape[2:], strict=True)]
    if 0 in shape:
        return torch.zeros(4, dtype=torch.int32), torch.ones(s["scales"], dtype=torch.float64)
    kept = reference.block_mask(shape, block, s["gamma"], s["seed"], s["offset"])
    bits = torch.zeros((-(-kept.numel() // 128) + 1) * 128, dtype=torch.bool)
    bits[: kept.numel()] = kept.flatten()
    counts = kept.reshape(s["scales"], -1).sum(1).double() if s["scales"] else torch.zeros(0)
    scale = (kept.numel() // max(1, s["scales"])) / (counts.double() + s["eps"])
    return packed(bits).view(torch.int32), scale


def _drop_block(t: Tensors, s: Settings) -> tuple[Tensor]:
    x, scale = t["input"], s["scale"]
    shape = list(x.shape)
    shape[1] = 1 if s["share_channels"] else shape[1]
    kept = _unpacked(s["bits"])[: torch.Size(shape).numel()].view(shape)
    if scale.numel():
        x = x * scale.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    return (torch.where(kept, x, 0.0),)


def _stored(s: Settings, masks: int, ins: int) -> Tensor:
    """The masks [masks, outs, ins], stored or drawn."""
    outs = s["outs"]
    if s.get("mask_bits") is None:
        return reference.mask((masks, outs, ins), s["p"], **_state(s))
    bits = _unpacked(s["mask_bits"])  # [groups, masks, outs rounded up, 128]
    return bits.permute(1, 2, 0, 3).flatten(2)[:, :outs, :ins]


def _linear_of(t: Tensors, s: Settings) -> tuple[Tensor]:
    x, weight = t["input"], t["weight"]
    rows, ins = x.shape
    share = s["rows_per_mask"]
    masks = -(-rows // share)
    which = torch.arange(rows) // share
    kept = _stored(s, masks, ins)[which]
    out = torch.where(kept, weight * x[:, None, :], 0.0).sum(-1)
    if "bias" in t:
        kept_bias = reference.mask((masks, s["outs"]), s["p"], **_state(s), stream=1)[which]
        out = out + torch.where(kept_bias, t["bias"], 0.0)
    return (out * s["scale"],)


def _moments(t: Tensors, s: Settings) -> tuple[Tensor, Tensor]:
    t = {name: as_in_sums(tensor) for name, tensor in t.items()}
    x, weight = t["input"], t["weight"]
    bias = t["bias"] if "bias" in t else torch.zeros(len(weight), dtype=x.dtype)
    masked = bias if s["mask_bias"] else torch.zeros_like(bias)
    mean = s["mean_scale"] * (x @ weight.T + masked)
    variance = s["variance_scale"] * (x.square() @ weight.square().T + masked.square())
    return mean if s["mask_bias"] else mean + bias, variance


def _mask_bits(t: Tensors, s: Settings) -> tuple[Tensor, Tensor]:
    """The words, and which of their bits stand for a connection."""
    if "weight" in t:  # of the overload that draws
        s = {**s, "outs": t["weight"].shape[0], "in_features": t["weight"].shape[1]}
    masks, outs, ins = s["masks"], s["outs"], s["in_features"]
    first = s.get("first_mask", 0)
    kept = reference.mask((first + masks, outs, ins), s["p"], **_state(s))[first:]
    return _stored_words(kept), _stored_words(torch.ones_like(kept))


def _stored_words(kept: Tensor) -> Tensor:
    masks, outs, ins = kept.shape
    padding = (0, -ins % 128, 0, -outs % 8)
    words = packed(torch.nn.functional.pad(kept, padding)).view(torch.int32)
    words = words.view(masks, -(-outs // 8) * 8, -(-ins // 128), 4)
    return words.permute(2, 0, 1, 3).contiguous()


def _linear_gradients(*names: str) -> Truth:
    def truth(t: Tensors, s: Settings) -> tuple[Tensor, ...]:
        g = t["grad_output"]
        ins = next((t[name].shape[1] for name in ("input", "weight") if name in t), 0)
        full = {
            "input": torch.zeros((g.shape[0], ins), dtype=g.dtype),
            "weight": torch.zeros((g.shape[1], ins), dtype=g.dtype),
            **t,
        }
        if names == ("bias",):
            full["bias"] = torch.zeros(g.shape[1], dtype=g.dtype)
        return _gradients(_linear_of, full, s, names)

    return truth


def _gradients(function: Truth, t: Tensors, s: Settings, names: tuple[str, ...]) -> Any:
    sources = [t[name].detach().requires_grad_() for name in names]
    with torch.enable_grad():
        output = function({**t, **dict(zip(names, sources, strict=True))}, s)[0]
        found = torch.autograd.grad(output, sources, t["grad_output"], materialize_grads=True)
    return tuple(found)


TRUTHS: dict[str, Truth] = {
    "mask": _mask,
    "packed_mask": _packed_mask,
    "uniform_noise": _noise(uniforms_of_words),
    "normal_noise": _noise(normals_of_words),
    "dropout": _dropout,
    "gaussian_dropout": _gaussian_dropout,
    "gaussian_noise": _gaussian_noise,
    "gaussian_noise_d_variance": _gaussian_noise_d_variance,
    "concrete_dropout": _concrete_dropout,
    "concrete_dropout_backward": _concrete_dropout_backward,
    "bias_act_dropout_add": _bias_act_dropout_add,
    "bias_act_dropout_add_d_input": _bias_act_dropout_add_d_input,
    "bias_act_dropout_add_d_both": _bias_act_dropout_add_d_both,
    "drop_block_mask": _drop_block_mask,
    "drop_block": _drop_block,
    "dropconnect_mask_bits": _mask_bits,
    "dropconnect_linear": _linear_of,
    "dropconnect_moments": _moments,
    "dropconnect_linear_d_input": _linear_gradients("input"),
    "dropconnect_linear_d_weight": _linear_gradients("weight"),
    "dropconnect_linear_d_both": _linear_gradients("input", "weight"),
    "dropconnect_linear_d_bias": _linear_gradients("bias"),
}
