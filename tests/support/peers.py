"""Layers as other packages have them, written here, under the names of theirs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _in(module: str) -> Any:
    """Says that a class is of this module."""

    def named(cls: type) -> type:
        cls.__module__ = module
        return cls

    return named


def _drop_samples(x: Tensor, p: float, shape: tuple[int, ...], scale: bool = True) -> Tensor:
    keep = torch.empty(shape).bernoulli_(1 - p)
    return x * (keep / (1 - p) if scale and p < 1 else keep)


@_in("timm.layers.drop")
class DropPath(nn.Module):
    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        return _drop_samples(x, self.drop_prob, (len(x), *[1] * (x.dim() - 1)), self.scale_by_keep)


@_in("timm.layers.drop")
class DropBlock2d(nn.Module):
    """Blocks around every element, those at the edge cut off by it."""

    def __init__(self, drop_prob: float = 0.1, block_size: int = 7, **settings: Any) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.block_size = block_size
        self.gamma_scale: float = settings.get("gamma_scale", 1.0)
        self.with_noise: bool = settings.get("with_noise", False)
        self.inplace: bool = settings.get("inplace", False)
        self.couple_channels: bool = settings.get("couple_channels", True)
        self.scale_by_keep: bool = settings.get("scale_by_keep", True)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        n, c, h, w = x.shape
        tall, wide = min(self.block_size, h), min(self.block_size, w)
        places = (h - tall + 1) * (w - wide + 1)
        gamma = self.gamma_scale * self.drop_prob * h * w / (tall * wide * places)
        seeds = torch.empty(n, 1 if self.couple_channels else c, h, w).bernoulli_(gamma)
        before = ((wide - 1) // 2, wide // 2, (tall - 1) // 2, tall // 2)
        keep = 1 - F.max_pool2d(F.pad(seeds, before), (tall, wide), stride=1)
        if self.with_noise:
            return x * keep + torch.randn(keep.shape) * (1 - keep)
        if self.scale_by_keep:
            keep = keep * (keep.numel() / (keep.sum() + 1e-7))
        return x.mul_(keep) if self.inplace else x * keep


@_in("torchvision.ops.stochastic_depth")
class StochasticDepth(nn.Module):
    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return input
        rows = len(input) if self.mode == "row" else 1
        return _drop_samples(input, self.p, (rows, *[1] * (input.dim() - 1)))


class _BlocksOfTorchvision(nn.Module):
    dims: int

    def __init__(self, p: float, block_size: int, inplace: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = p
        self.block_size = block_size
        self.inplace = inplace
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return input
        sizes = input.shape[2:]
        side = min(self.block_size, *sizes)
        seeds = torch.Size(size - side + 1 for size in sizes)
        gamma = self.p * sizes.numel() / (side**self.dims * seeds.numel())
        dropped = torch.empty(*input.shape[:2], *seeds).bernoulli_(gamma)
        padded = F.pad(dropped, [side - 1] * (2 * self.dims))
        pool = {2: F.max_pool2d, 3: F.max_pool3d}[self.dims]
        keep = 1 - pool(padded, side, stride=1)
        return input * keep * (keep.numel() / (self.eps + keep.sum()))


@_in("torchvision.ops.drop_block")
class BlocksOfTorchvision2d(_BlocksOfTorchvision):
    dims = 2


@_in("torchvision.ops.drop_block")
class BlocksOfTorchvision3d(_BlocksOfTorchvision):
    dims = 3


BlocksOfTorchvision2d.__name__, BlocksOfTorchvision3d.__name__ = "DropBlock2d", "DropBlock3d"


@_in("transformers.models.beit.modeling_beit")
class BeitDropPath(nn.Module):
    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        shape = (len(hidden_states), *[1] * (hidden_states.dim() - 1))
        return _drop_samples(hidden_states, self.drop_prob, shape)


@_in("transformers.models.sew_d.modeling_sew_d")
class StableDropout(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.count = 0
        self.context_stack: list[Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_prob, self.training)


@_in("transformers.pytorch_utils")
class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


@_in("fastai.text.models.awdlstm")
class RNNDropout(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return _drop_samples(x, self.p, (len(x), 1, *x.shape[2:]))


@_in("torchnlp.nn.lock_dropout")
class LockedDropout(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return _drop_samples(x, self.p, (1, *x.shape[1:]))


@_in("probly.layers.torch")
class DropConnectLinear(nn.Module):
    def __init__(self, base_layer: nn.Linear, p: float = 0.25) -> None:
        super().__init__()
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self.p = p
        self.weight = nn.Parameter(base_layer.weight.clone().detach())
        bias = base_layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.clone().detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            weight = self.weight * (torch.rand_like(self.weight) > self.p).float()
        else:
            weight = self.weight * (1 - self.p)
        return F.linear(x, weight, self.bias)


@_in("peft.tuners.lora.layer")
class LoraLinear(nn.Module):
    """One adapter, or several, beside a frozen linear layer; variants are called in another way."""

    def __init__(self, base_layer: nn.Linear, *names: str, p: float = 0.3, r: int = 4) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_dropout = nn.ModuleDict({name: nn.Dropout(p) for name in names})
        sizes = base_layer.in_features, base_layer.out_features
        self.lora_A = nn.ModuleDict({name: nn.Linear(sizes[0], r, bias=False) for name in names})
        self.lora_B = nn.ModuleDict({name: nn.Linear(r, sizes[1], bias=False) for name in names})
        self.use_dora = dict.fromkeys(names, False)
        self.lora_variant: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        for name, linear in self.lora_A.items():
            dropout = self.lora_dropout[name]
            result = result + self.lora_B[name](linear(dropout(x)))
        return result


LoraLinear.__name__ = LoraLinear.__qualname__ = "Linear"


#: A layer of every kind with settings other than the defaults, by a name for the test.
LAYERS: dict[str, Any] = {
    "timm DropPath": lambda: DropPath(0.3),
    "timm DropPath unscaled": lambda: DropPath(0.3, scale_by_keep=False),
    "timm DropBlock2d": lambda: DropBlock2d(0.2, 4, gamma_scale=0.7),
    "timm DropBlock2d per channel": lambda: DropBlock2d(0.2, 5, couple_channels=False),
    "timm DropBlock2d with noise": lambda: DropBlock2d(0.2, 3, with_noise=True),
    "timm DropBlock2d unscaled": lambda: DropBlock2d(0.2, 3, scale_by_keep=False, inplace=True),
    "StochasticDepth row": lambda: StochasticDepth(0.3, "row"),
    "StochasticDepth batch": lambda: StochasticDepth(0.3, "batch"),
    "torchvision DropBlock2d": lambda: BlocksOfTorchvision2d(0.2, 5, eps=1e-4),
    "torchvision DropBlock3d": lambda: BlocksOfTorchvision3d(0.2, 3),
    "BeitDropPath": lambda: BeitDropPath(0.3),
    "StableDropout": lambda: StableDropout(0.3),
    "RNNDropout": lambda: RNNDropout(0.3),
    "LockedDropout": lambda: LockedDropout(0.3),
    "probly DropConnectLinear": lambda: DropConnectLinear(nn.Linear(40, 30), 0.3),
}


def _with_raw_weights(module: nn.Module, owner: nn.Module, names: list[str]) -> None:
    """The named parameters of ``module`` become parameters ``..._raw`` of ``owner``."""
    for name in names:
        weight = module._parameters.pop(name)
        assert weight is not None
        owner.register_parameter(f"{name}_raw", nn.Parameter(weight.data))


@_in("weight_drop")
class WeightDrop(nn.Module):
    """AWD-LSTM's, as repaired for releases of torch where its own way loses the gradient."""

    def __init__(
        self, module: nn.Module, weights: list[str], dropout: float = 0, variational: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self.weights = weights
        self.dropout = dropout
        self.variational = variational
        module.flatten_parameters = self._nothing
        _with_raw_weights(module, module, weights)

    def _nothing(self, *args: Any) -> None:
        pass

    def forward(self, *args: Any) -> Any:
        for name in self.weights:
            raw = getattr(self.module, f"{name}_raw")
            if self.variational:
                mask = F.dropout(torch.ones(len(raw), 1), self.dropout, self.training)
                weight = mask * raw
            else:
                weight = F.dropout(raw, self.dropout) if self.training else raw.clone()
            setattr(self.module, name, weight)
        return self.module.forward(*args)


@_in("fastai.text.models.awdlstm")
class WeightDropout(nn.Module):
    def __init__(
        self, module: nn.Module, weight_p: float, layer_names: str | list[str] = "weight_hh_l0"
    ) -> None:
        super().__init__()
        self.module = module
        self.weight_p = weight_p
        self.layer_names = [layer_names] if isinstance(layer_names, str) else layer_names
        _with_raw_weights(module, self, self.layer_names)
        module.flatten_parameters = self._do_nothing

    def _do_nothing(self) -> None:
        pass

    def forward(self, *args: Any) -> Any:
        for name in self.layer_names:
            raw = getattr(self, f"{name}_raw")
            weight = F.dropout(raw, self.weight_p) if self.training else raw.clone()
            setattr(self.module, name, weight)
        return self.module(*args)


def _weight_drop(module: Any, weights: list[str], dropout: float) -> None:
    _with_raw_weights(module, module, weights)
    original_module_forward = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        for name in weights:
            raw = getattr(module, f"{name}_raw")
            setattr(module, name, F.dropout(raw, dropout) if module.training else raw.clone())
        return original_module_forward(*args, **kwargs)

    module.forward = forward


@_in("torchnlp.nn.weight_drop")
class WeightDropLSTM(nn.LSTM):
    def __init__(self, *args: Any, weight_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = [f"weight_hh_l{number}" for number in range(self.num_layers)]
        _weight_drop(self, names, weight_dropout)


@_in("torchnlp.nn.weight_drop")
class WeightDropLinear(nn.Linear):
    def __init__(self, *args: Any, weight_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _weight_drop(self, ["weight"], weight_dropout)


@_in("torchnlp.nn.weight_drop")
class WrapperOfTorchNlp(nn.Module):
    def __init__(self, module: nn.Module, weights: list[str], dropout: float = 0.0) -> None:
        super().__init__()
        _weight_drop(module, weights, dropout)
        self.forward = module.forward  # type: ignore[assignment]


WrapperOfTorchNlp.__name__ = "WeightDrop"
