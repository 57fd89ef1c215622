"""Calls of the modules, which must give what their functions give from the same generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

import torch

from fused_dropout import nn
from fused_dropout._tools.table import layers

from .arguments import BAD, BAD_DTYPES, BAD_P, BAD_TENSORS, NO_TENSORS, draw_p
from .call import Call
from .from_table import LayerRecipe, layer_named
from .operands import DTYPES, Shape, draw_operand, draw_shape

Settings = dict[str, str]  # code by name

CONVENTIONS = ("'inverted'", "'paper'")


def draw_module(random: Random) -> Call:
    """A call of one of the modules, one in four with a mistake in its making or its input."""
    name = random.choice(names())
    return call_of(random, name, RECIPES.get(name) or _recipe_of_the_table(name))


def call_of(random: Random, name: str, recipe: Recipe | LayerRecipe) -> Call:
    """A call of this module, perhaps with a mistake."""
    settings = recipe.settings(random)
    shape, *others = recipe.shapes(random)
    dtype = random.choice(DTYPES)
    inplace = settings.get("inplace") == "True"
    call = Call(
        f"nn.{name}", "m(x)", seeding=f"torch.default_generator.manual_seed({random.randrange(99)})"
    )
    operand = draw_operand(random, "x", shape, dtype, through_copy=inplace, own_memory=inplace,
                           kinds=("normal", "normal", "special"))  # fmt: skip
    call.operands.append(operand)
    for operand_name, other in zip("yz", others, strict=False):
        call.operands.append(draw_operand(random, operand_name, other, dtype))
    call.expression = f"m({', '.join(operand.name for operand in call.operands)})"
    call.writes = "x" if inplace else None
    made = {**recipe.sizes(shape, dtype), **settings}
    spoilt = random.choice(("setting", "input")) if random.random() < 0.25 else None
    if spoilt == "setting":
        _spoil_setting(random, call, made)
        arguments = ", ".join(f"{key}={value}" for key, value in made.items())
        call.expression = f"nn.{name}({arguments})"
        return call
    arguments = ", ".join(f"{key}={value}" for key, value in made.items())
    training = random.random() < 0.85
    call.setup = [
        "torch.default_generator.manual_seed(0)",
        f"m = nn.{name}({arguments})",
        f"m.train({training})",
    ]
    if random.random() < 0.2:
        call.contexts.append(random.choice(("torch.no_grad()", "torch.inference_mode()")))
    if spoilt == "input":
        _spoil_input(random, call)
        return call
    if call.operands[0].inference:  # parameters require grad
        call.expect = "either"
    call.allow_refusals()
    call.twin = recipe.function.format(training=training, **settings) or call.expression
    return call


def _spoil_setting(random: Random, call: Call, settings: Settings) -> None:
    name = random.choice(tuple(settings))
    call.expect, call.names, call.writes = "error", (name,), None
    if name in ("p", "drop_prob"):
        settings[name] = random.choice(BAD_P)
        call.names = (name, "probability")  # torch.nn's own word
    elif name in BAD and name != "dtype":
        settings[name] = random.choice(BAD[name])
        if name == "broadcast_dims":
            settings[name] = random.choice(("'x'", "None", "1.5", "[None]", "(0.0,)", "object()"))
    elif name in ("features", "in_features", "out_features"):
        settings[name] = random.choice(("-1", "1.5", "None", "'x'", "[]"))
        call.expect, call.names = "either", ()  # torch.nn.Linear's own words
    else:
        settings[name] = random.choice(("None", "'x'", "2", "[]", "object()"))
        call.expect, call.names = "either", ()


def _spoil_input(random: Random, call: Call) -> None:
    kind = random.choice(("no tensor", "no dense tensor", "dtype"))
    shape = call.operands[0].shape
    if kind == "no tensor":
        call.setup.append(f"bad = {random.choice(NO_TENSORS)}")
    elif kind == "no dense tensor":
        call.setup.append(f"bad = {random.choice(BAD_TENSORS)}")
    else:
        call.setup.append(f"bad = numbers({shape}, torch.{random.choice(BAD_DTYPES)}, 1)")
    call.expression = call.expression.replace("x", "bad", 1)
    call.expect = "either"
    call.writes = "bad" if call.writes else None


class Recipe:
    """How a module is made, and the function that it must agree with."""

    def __init__(
        self,
        function: str,
        dims: tuple[int, ...] | None = None,
        choices: dict[str, tuple[str, ...] | Callable[[Random], str]] | None = None,
        sizes: Callable[[Shape, str], Settings] = lambda shape, dtype: {},
        operands: int = 1,
    ) -> None:
        self.function = function
        self.dims = dims
        self.choices = choices or {}
        self.sizes = sizes
        self.operands = operands

    def settings(self, random: Random) -> Settings:
        """Code of the constructor's arguments."""
        return {
            name: choice(random) if callable(choice) else random.choice(choice)
            for name, choice in self.choices.items()
        }

    def shapes(self, random: Random) -> tuple[Shape, ...]:
        """Those of operands that it takes."""
        most = 600 if "Linear" in self.function or "linear" in self.function else 3000
        shape = draw_shape(random, random.choice(self.dims) if self.dims else None, most)
        return (shape,) * self.operands


FLAGS = ("True", "False")
SIDES = ("1", "2", "3", "7", "99")


def _linear_sizes(shape: Shape, dtype: str) -> Settings:
    return {"in_features": repr(shape[-1]), "out_features": "5", "dtype": f"torch.{dtype}"}


def _dropout_like(function: str, dims: tuple[int, ...]) -> Recipe:
    code = f"F.{function}(x, {{p}}, {{training}}, {{inplace}})"
    return Recipe(code, dims, {"p": draw_p, "inplace": FLAGS})


def _block_like(function: str, dims: int) -> Recipe:
    code = (
        f"F.{function}(x, {{p}}, {{block_size}}, {{inplace}}, {{eps}}, {{training}}, "
        "normalize={normalize}, share_channels={share_channels}, gamma={gamma}, "
        "gamma_scale={gamma_scale}, with_noise={with_noise})"
    )
    choices = {
        "p": draw_p, "block_size": SIDES, "inplace": FLAGS, "eps": ("1e-6", "0.0", "1"),
        "normalize": ("'batch'", "'sample'", "'none'"), "share_channels": FLAGS,
        "gamma": ("'paper'", "'exact'"), "gamma_scale": ("1.0", "0.5"), "with_noise": FLAGS,
    }  # fmt: skip
    return Recipe(code, (dims,), choices)


RECIPES = {
    "Dropout": Recipe(
        "F.dropout(x, {p}, {training}, {inplace}, broadcast_dims={broadcast_dims}, "
        "convention={convention})",
        (1, 2, 3, 4),
        {"p": draw_p, "inplace": FLAGS, "broadcast_dims": ("()", "(0,)", "[-1]"),
         "convention": CONVENTIONS},
    ),
    "Dropout1d": _dropout_like("dropout1d", (2, 3)),
    "Dropout2d": _dropout_like("dropout2d", (3, 4)),
    "Dropout3d": _dropout_like("dropout3d", (4, 5)),
    "AlphaDropout": Recipe("F.alpha_dropout(x, {p}, {training})", None, {"p": draw_p}),
    "FeatureAlphaDropout": Recipe(
        "F.feature_alpha_dropout(x, {p}, {training})", (2, 3, 4), {"p": draw_p}
    ),
    "LockedDropout": Recipe(
        "F.locked_dropout(x, {p}, {training}, {inplace}, batch_first={batch_first})",
        (2, 3, 4),
        {"p": draw_p, "inplace": FLAGS, "batch_first": FLAGS},
    ),
    "StochasticDepth": Recipe(
        "F.stochastic_depth(x, {p}, {mode}, {training})",
        (1, 2, 4),
        {"p": draw_p, "mode": ("'row'", "'batch'")},
    ),
    "DropPath": Recipe(
        "F.drop_path(x, {drop_prob}, {training}, {scale_by_keep})",
        (1, 2, 4),
        {"drop_prob": draw_p, "scale_by_keep": FLAGS},
    ),
    "DropPathAdd": Recipe(
        "F.drop_path_add(x, y, {drop_prob}, {training}, {scale_by_keep})",
        (1, 2, 4),
        {"drop_prob": draw_p, "scale_by_keep": FLAGS},
        operands=2,
    ),
    "DropBlock1d": _block_like("drop_block1d", 3),
    "DropBlock2d": _block_like("drop_block2d", 4),
    "DropBlock3d": _block_like("drop_block3d", 5),
    "GaussianDropout": Recipe(
        "F.gaussian_dropout(x, {p}, {training}, {inplace})",
        None,
        {"p": ("0", "0.5", "0.1", "0.999", "5e-324"), "inplace": FLAGS},
    ),
    "BiasActDropoutAdd": Recipe(
        "F.bias_act_dropout_add(x, m.bias, y, {p}, {activation}, {training}, "
        "convention={convention})",
        (1, 2, 3),
        {"p": draw_p, "activation": ("'none'", "'gelu'", "'relu'"), "bias": FLAGS,
         "convention": CONVENTIONS},
        lambda shape, dtype: {"features": repr(shape[-1]), "dtype": f"torch.{dtype}"},
        operands=2,
    ),
    "ConcreteDropout": Recipe(
        "F.concrete_dropout(x, m.logit_p, {temperature}, {training}, "
        "broadcast_dims={broadcast_dims})",
        (1, 2, 3, 4),
        {"temperature": ("0.1", "1", "1e-3"), "broadcast_dims": ("()", "(0,)", "[-1]")},
    ),
    "DropConnectLinear": Recipe(
        "F.dropconnect_linear(x, m.weight, m.bias, {p}, {training}, mask={mask}, "
        "convention={convention}, mask_storage={mask_storage})",
        (1, 2, 3),
        {"p": draw_p, "bias": FLAGS, "mask": ("'row'", "'example'", "'batch'", "2"),
         "convention": CONVENTIONS, "mask_storage": ("'auto'", "'packed'", "'regenerate'")},
        _linear_sizes,
    ),
    "GaussianNoise": Recipe(
        "F.gaussian_noise(x, torch.zeros_like(x), eps={std} * {std}) if {training} else x",
        None,
        {"std": ("0.5", "2", "1e-3")},
    ),
    "VariationalDropoutLinear": Recipe(
        "(F.gaussian_noise(torch.nn.functional.linear(x, m.weight, m.bias), "
        "torch.nn.functional.linear(x.square(), m.weight.square() * (m.log_sigma2 - "
        "(m.weight.square() + 1e-8).log()).clamp(-8, 8).exp())) if {training} else "
        "torch.nn.functional.linear(x, torch.where(m.kept(), m.weight, 0), m.bias))",
        (1, 2, 3),
        {"bias": FLAGS},
        _linear_sizes,
    ),
}  # fmt: skip


@cache
def names() -> tuple[str, ...]:
    """The modules of this file and of the table."""
    return tuple(sorted({*RECIPES, *(layer.name for layer in layers())}))


@cache
def _recipe_of_the_table(name: str) -> LayerRecipe:
    return LayerRecipe(layer_named(name))


#: Take modules or indices, which are no operands here: tests/ops has wrong calls of them.
WITH_TESTS_OF_THEIR_OWN = {"DropPathSkip", "EmbeddingDropout", "WeightDrop"}


def missing() -> list[str]:
    """Modules that are never made."""
    modules = {name for name in nn.__all__ if issubclass(getattr(nn, name), torch.nn.Module)}
    return sorted(modules - {*names()} - WITH_TESTS_OF_THEIR_OWN)
