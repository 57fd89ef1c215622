"""The table of ops: what each op is called, called with, compared with, and held to.

`fused-dropout verify` and the tests in tests/table/ run over its rows, so a new op is a row here.
Its torch operators are rows of operators.py. `python -m fused_dropout._tools.pages docs` makes
docs/support.md of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import fused_dropout
from fused_dropout import functional, nn, reference

Function = Callable[..., Tensor]  # operands, settings and seed= in; one tensor out
Case = tuple[tuple[str, Any], ...]  # keyword arguments
Shape = tuple[int, ...]
Operands = Callable[[Shape, torch.Generator], list[Tensor]]

SHAPES: tuple[Shape, ...] = ((1,), (129,), (3, 5, 31), (2, 7, 9, 11), (4, 40_000))
MAPS: tuple[Shape, ...] = ((1, 1, 1, 1), (2, 3, 5, 7), (3, 16, 14, 9))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# What the ops are held to; Op.properties says which op to which of them.
PROPERTIES = {
    "dtypes": "float32, bfloat16, float16 and float64, each as close to the reference as torch is",
    "strides": "any strides, memory format and storage offset: the bits of the dense call",
    "in place": "`inplace=True` writes the bits of the call that is not in place",
    "gradient": "backward; double backward; gradients of a batch of directions at once",
    "forward mode": "tangents of every operand, forward over reverse and reverse over forward",
    "torch.func": "grad, jvp, jacrev, jacfwd and hessian",
    "vmap": "over every operand, random states and gradients, with each `randomness=`",
    "random sources": "`generator=`, `seed=`, `rng_state=`, `torch.manual_seed`, checkpointing",
    "threads": "the same bits for any number of CPU threads",
    "compile": "torch.compile to one graph, with gradients, and fresh masks in every call",
    "make_fx": "traces with gradients, in each tracing mode",
    "export": "torch.export in training mode, strict or not, with gradients",
    "fx": "torch.fx.symbolic_trace; the op is one node",
    "fake and meta": "shapes, strides and dtypes without data",
    "CPU = CUDA": "the CPU's and the GPU's masks are equal, results as close as rounding allows",
    "AOTInductor": "the module compiled ahead of time in training mode",
    "DDP and FSDP2": "the module trains in two processes as in one",
}


@dataclass(frozen=True)
class Layer:
    """A module of an op: `kind(**arguments)`, called with operands of `shapes`."""

    kind: type[torch.nn.Module]
    arguments: Case
    shapes: tuple[Shape, ...]

    @property
    def name(self) -> str:
        return self.kind.__name__

    def build(self) -> torch.nn.Module:
        """A new module in training mode, on torch's default device and in its default dtype."""
        return self.kind(**dict(self.arguments))

    def has_parameters(self) -> bool:
        """Whether there is anything in the module for an optimiser."""
        with torch.device("meta"):
            return any(True for _ in self.build().parameters())


@dataclass(frozen=True)
class Op:
    """A function, its reference, and what to call both with.

    Attributes:
        function: takes operands, settings and one of `generator=`, `seed=` and `rng_state=`; of
            ops without operands only `seed=`.
        reference: takes the same operands and settings, and `seed=`.
        settings, shapes: `fused-dropout verify` calls the op with all of them.
        small: a shape and settings for tests that are slow.
        operands: draws the operands for a shape in float64; all of them get gradients.
        operand_names: what the function calls them; () for ops that make noise out of nothing.
        inplace: whether the function takes `inplace=`.
        idle: settings with which nothing is drawn.
        elementwise: whether an output element depends on one element of each operand.
        layers: the modules that run the op.
        operators: its operators in `torch.ops.fused_dropout`, see operators.py.
    """

    name: str
    function: Function
    reference: Function
    settings: tuple[Case, ...]
    shapes: tuple[Shape, ...] = SHAPES
    small: tuple[Shape, Case] = ((3, 4), (("p", 0.5),))
    operands: Operands = lambda shape, draw: [normal(shape, draw)]
    operand_names: tuple[str, ...] = ("input",)
    inplace: bool = False
    idle: tuple[Case, ...] = ()
    elementwise: bool = True
    layers: tuple[Layer, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def properties(self) -> frozenset[str]:
        """Which of PROPERTIES the op is held to."""
        held = {"threads", "compile", "CPU = CUDA"}
        if self.operand_names:
            held |= {"dtypes", "strides", "gradient", "forward mode", "torch.func", "vmap"}
            held |= {"random sources", "make_fx", "export", "fx", "fake and meta"}
        if self.inplace:
            held.add("in place")
        if self.layers:
            held.add("AOTInductor")
        if any(layer.has_parameters() for layer in self.layers):
            held.add("DDP and FSDP2")
        return frozenset(held)


def normal(shape: Shape, draw: torch.Generator) -> Tensor:
    """Standard normals in float64."""
    return torch.randn(shape, generator=draw, dtype=torch.float64, device=draw.device)


def case(**keywords: Any) -> Case:
    """Keyword arguments that can be a key."""
    return tuple(keywords.items())


def ops_with(held_to: str) -> tuple[Op, ...]:
    """The rows that are held to one of PROPERTIES."""
    if held_to not in PROPERTIES:
        raise ValueError(f"property must be one of {', '.join(PROPERTIES)}, got {held_to!r}")
    return tuple(op for op in ops() if held_to in op.properties)


def op_named(name: str) -> Op:
    """The row of this name."""
    (op,) = (op for op in ops() if op.name == name)
    return op


def layers() -> tuple[Layer, ...]:
    """The modules of all rows."""
    return tuple(layer for op in ops() for layer in op.layers)


@cache
def ops() -> tuple[Op, ...]:
    """All rows."""
    return (*_dropouts(), *_whole_samples(), *_noises(), *_fused_layers(), *_blocks(), *_draws())


# ---- the rows ------------------------------------------------------------------------------------

_RATES = tuple((("p", p),) for p in (0.5, 0.1, 0.3))
_IDLE = (case(p=0.0), case(p=1.0))
_WITH_BATCH = tuple(shape for shape in SHAPES if len(shape) > 1)
_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


def _dropouts() -> tuple[Op, ...]:
    f, r = functional, reference
    shared = tuple(case(p=0.3, broadcast_dims=dims) for dims in ((0,), (1,), (0, 2), (1, 2, 3)))
    common: dict[str, Any] = {"inplace": True, "idle": _IDLE}
    return (
        Op(
            "dropout", f.dropout, r.dropout, _RATES, **common,
            layers=(Layer(nn.Dropout, case(p=0.4), ((6, 40),)),),
            operators=("dropout", "dropout_"),
        ),
        Op(
            "dropout, shared", f.dropout, r.dropout, shared, (*MAPS, (3, 5, 8, 40)),
            small=((3, 4, 2), case(p=0.5, broadcast_dims=(1,))), inplace=True,
        ),
        Op(
            "dropout1d", f.dropout1d, r.dropout1d, _RATES, ((5, 7), (3, 5, 31)),
            small=((3, 4, 2), case(p=0.5)), **common,
            layers=(Layer(nn.Dropout1d, case(p=0.4), ((6, 9, 5),)),),
        ),
        Op(
            "dropout2d", f.dropout2d, r.dropout2d, _RATES, MAPS,
            small=((3, 4, 2, 1), case(p=0.5)), **common,
            layers=(Layer(nn.Dropout2d, case(p=0.4), ((6, 9, 5, 2),)),),
        ),
        Op(
            "dropout3d", f.dropout3d, r.dropout3d, _RATES, ((2, 5, 3, 4, 5), (5, 3, 4, 5)),
            small=((3, 4, 1, 2, 1), case(p=0.5)), **common,
            layers=(Layer(nn.Dropout3d, case(p=0.4), ((6, 9, 1, 2, 3),)),),
        ),
        # torch's alpha dropouts take training=False for granted.
        Op(
            "alpha_dropout", partial(f.alpha_dropout, training=True), r.alpha_dropout,
            (*_RATES, case(p=0.3, broadcast_dims=(0,))),
            **common, layers=(Layer(nn.AlphaDropout, case(p=0.4), ((6, 40),)),),
        ),
        Op(
            "feature_alpha_dropout", partial(f.feature_alpha_dropout, training=True),
            r.feature_alpha_dropout, _RATES, _WITH_BATCH, small=((3, 4, 2), case(p=0.5)), **common,
            layers=(Layer(nn.FeatureAlphaDropout, case(p=0.4), ((6, 9, 5),)),),
        ),
        Op(
            "locked_dropout", f.locked_dropout, r.locked_dropout, _RATES, _WITH_BATCH,
            small=((2, 3, 4), case(p=0.5)), **common,
            layers=(Layer(nn.LockedDropout, case(p=0.4), ((5, 6, 9),)),),
        ),
    )  # fmt: skip


def _whole_samples() -> tuple[Op, ...]:
    f = functional
    by_name = tuple(case(drop_prob=dict(rate)["p"]) for rate in _RATES)
    idle = (case(drop_prob=0.0), case(drop_prob=1.0))
    small = ((6, 2), case(drop_prob=0.5))
    modes = (case(p=0.3, mode="row"), case(p=0.5, mode="batch"), case(p=0.5, mode="row"))
    return (
        Op(
            "stochastic_depth", f.stochastic_depth, _stochastic_depth, modes,
            small=((6, 2), case(p=0.5, mode="row")),
            idle=(case(p=0.0, mode="row"), case(p=1.0, mode="batch")),
            layers=(Layer(nn.StochasticDepth, case(p=0.4, mode="row"), ((16, 5),)),),
        ),
        Op(
            "drop_path", partial(f.drop_path, training=True), _drop_path, by_name,
            small=small, operand_names=("x",), idle=idle,
            layers=(Layer(nn.DropPath, case(drop_prob=0.4), ((16, 5),)),),
        ),
        Op(
            "drop_path_add", partial(f.drop_path_add, training=True), _drop_path_add, by_name,
            small=small, operands=_two, operand_names=("x", "branch"), idle=idle,
            layers=(Layer(nn.DropPathAdd, case(drop_prob=0.4), ((16, 5), (16, 5))),),
        ),
    )  # fmt: skip


def _noises() -> tuple[Op, ...]:
    f, r = functional, reference
    variational = case(in_features=9, out_features=5, log_sigma2_init=-1.0)
    return (
        Op(
            "gaussian_dropout", f.gaussian_dropout, r.gaussian_dropout, _RATES,
            inplace=True, idle=_IDLE[:1],
            layers=(Layer(nn.GaussianDropout, case(p=0.4), ((6, 40),)),),
            operators=("gaussian_dropout", "gaussian_dropout_"),
        ),
        Op(
            "gaussian_noise", f.gaussian_noise, r.gaussian_noise, (case(),), small=((3, 4), ()),
            operands=_mean_variance, operand_names=("mean", "variance"),
            layers=(Layer(nn.VariationalDropoutLinear, variational, ((6, 9),)),),
            operators=("gaussian_noise", "gaussian_noise_d_variance"),
        ),
        Op(
            "concrete_dropout", f.concrete_dropout, r.concrete_dropout,
            (case(temperature=0.1), case(temperature=0.7)), small=((3, 4), case(temperature=0.7)),
            operands=_with_logit, operand_names=("input", "logit_p"),
            layers=(Layer(nn.ConcreteDropout, case(), ((6, 40),)),),
            operators=("concrete_dropout", "concrete_dropout_backward"),
        ),
    )  # fmt: skip


def _fused_layers() -> tuple[Op, ...]:
    f, r = functional, reference
    epilogue = "bias_act_dropout_add"
    linear = "dropconnect_linear"
    storages = tuple(
        case(p=0.3, mask=mask, mask_storage=storage)
        for mask in ("row", "example", "batch", 3)
        for storage in ("regenerate", "packed")
    )
    return (
        Op(
            epilogue, f.bias_act_dropout_add, r.bias_act_dropout_add,
            tuple(case(activation=name, p=0.1) for name in _ACTIVATIONS), _WITH_BATCH,
            small=((3, 4), case(activation="gelu", p=0.5)),
            operands=_with_bias, operand_names=("input", "bias", "residual"), idle=_IDLE,
            layers=(
                Layer(
                    nn.BiasActDropoutAdd, case(features=9, p=0.4, activation="silu"),
                    ((6, 9), (6, 9)),
                ),
            ),
            operators=(epilogue, f"{epilogue}_d_input", f"{epilogue}_d_both"),
        ),
        Op(
            linear, f.dropconnect_linear, _dropconnect_linear, storages, ((3, 2, 33), (5, 129)),
            small=((3, 4), case(p=0.5, mask_storage="regenerate")), operands=_input_weight_bias,
            operand_names=("input", "weight", "bias"), idle=_IDLE[:1], elementwise=False,
            layers=(
                Layer(nn.DropConnectLinear, case(in_features=9, out_features=5), ((6, 9),)),
            ),
            operators=(
                linear, "dropconnect_mask_bits",
                *(f"{linear}_{name}" for name in ("d_input", "d_weight", "d_both", "d_bias")),
            ),
        ),
    )  # fmt: skip


def _blocks() -> tuple[Op, ...]:
    f, r = functional, reference
    settings = (
        case(p=0.1, block_size=3),
        case(p=0.2, block_size=2, normalize="sample"),
        case(p=0.1, block_size=3, gamma="exact", share_channels=True),
    )
    small = case(p=0.3, block_size=2)
    arguments = case(p=0.2, block_size=2)
    common: dict[str, Any] = {"inplace": True, "idle": (case(p=0.0, block_size=2),)}
    return (
        Op(
            "drop_block2d", f.drop_block2d, r.drop_block, settings, MAPS,
            small=((2, 2, 2, 3), small), **common,
            layers=(Layer(nn.DropBlock2d, arguments, ((3, 4, 5, 6),)),),
            operators=("drop_block_mask", "drop_block", "drop_block_"),
        ),
        Op(
            "drop_block1d", f.drop_block1d, r.drop_block, settings, ((3, 4, 50),),
            small=((2, 2, 6), small), **common,
            layers=(Layer(nn.DropBlock1d, arguments, ((3, 4, 20),)),),
        ),
        Op(
            "drop_block3d", f.drop_block3d, r.drop_block, settings, ((2, 3, 5, 6, 7),),
            small=((2, 2, 2, 2, 2), small), **common,
            layers=(Layer(nn.DropBlock3d, arguments, ((3, 4, 5, 3, 4),)),),
        ),
    )  # fmt: skip


def _draws() -> tuple[Op, ...]:
    def row(name: str, function: Function, written_out: Function, settings: Case) -> Op:
        return Op(
            name, function, written_out, (settings,), ((),), ((), settings),
            operands=lambda shape, draw: [], operand_names=(), operators=(name,),
        )  # fmt: skip

    masks, noise = case(shape=(3, 140), p=0.3), case(size=(3, 50))
    return (
        row("mask", fused_dropout.mask, reference.mask, masks),
        row("packed_mask", fused_dropout.packed_mask, _packed_mask, masks),
        row("uniform_noise", fused_dropout.uniform_noise, reference.uniform_noise, noise),
        row("normal_noise", fused_dropout.normal_noise, reference.normal_noise, noise),
    )


# ---- references and operands ---------------------------------------------------------------------


def _stochastic_depth(input: Tensor, p: float, mode: str, seed: int) -> Tensor:
    shared = range(1 if mode == "row" else 0, input.dim())
    return reference.dropout(input, p, broadcast_dims=shared, seed=seed)


def _drop_path(x: Tensor, drop_prob: float, seed: int) -> Tensor:
    return _stochastic_depth(x, drop_prob, "row", seed)


def _drop_path_add(x: Tensor, branch: Tensor, drop_prob: float, seed: int) -> Tensor:
    return x + _drop_path(branch, drop_prob, seed)


def _dropconnect_linear(*operands: Any, mask_storage: str, **keywords: Any) -> Tensor:
    """The reference has no packed masks: how a mask is stored changes no result."""
    del mask_storage
    return reference.dropconnect_linear(*operands, **keywords)


def _packed_mask(shape: Shape, p: float, seed: int) -> Tensor:
    bits = reference.mask(shape, p, seed=seed).to(torch.int64)
    words = torch.nn.functional.pad(bits, (0, -shape[-1] % 32)).unflatten(-1, (-1, 32))
    return (words << torch.arange(32)).sum(-1).to(torch.uint32)


def _two(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape, draw)]


def _mean_variance(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), 0.1 + normal(shape, draw).square()]


def _with_logit(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), torch.tensor([-1.0], dtype=torch.float64, device=draw.device)]


def _with_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape[-1:], draw), normal(shape, draw)]


def _input_weight_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal((5, shape[-1]), draw), normal((5,), draw)]
