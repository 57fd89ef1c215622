"""Calls of the raw operators, whatever torch has registered of them."""

from __future__ import annotations

import math
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

import fused_dropout._core.extension  # noqa: F401, registers the operators
from fused_dropout._core import extension

from . import arguments as pools
from .call import Call, Oracle, Tensors
from .dropout_functions import logistic_ulps
from .from_table import operator_arguments, operator_named
from .operands import DTYPES, Operand, Shape, draw_operand, draw_shape
from .operator_truth import TRUTHS, stored_shape

SPACE = "fused_dropout::"
AGAIN = "the same call"  # the twin of a call that is not written out yet

# Wrong arguments by their type in the schema; an operator may have a use for some of them.
WRONG = {
    "Tensor": ("None", "'x'", "1.0", "torch.ones(0)", "torch.ones(())", "torch.ones(2, 3).long()",
               "torch.ones(2, 3, device='meta')", "torch.eye(3).to_sparse()", "torch.ones(1 << 12)",
               "torch.ones(2, 3, dtype=torch.complex64).conj()", "torch.ones(2, 0, 3)",
               "torch.nested.nested_tensor([torch.ones(2)])", "torch.ones(1, 1, 1, 1, 1, 1, 1)",
               "torch.ones(2, 3).to(torch.float8_e4m3fn)", "torch.zeros(3, dtype=torch.int32)",
               "torch.ones(4).expand(9, 4)", "torch._neg_view(torch.zeros(8, dtype=torch.int32))"),
    "float": ("float('nan')", "float('inf')", "-float('inf')", "-1.0", "2.0", "10**400", "None",
              "'x'", "1e308", "5e-324", "1j", "torch.tensor(0.5)"),
    "int": ("-1", "0", "2**62", "2**63 - 1", "-(2**63)", "2**64", "None", "'x'", "1.5", "10**40"),
    "int[]": ("[9]", "[-1]", "[0, 0, 0]", "[2**63 - 1]", "[-(2**63)]", "None", "'x'", "[1.5]",
              "[None]", "7", "[1] * 99", "[2**62, 2**62]", "[]"),
    "bool": ("None", "'x'", "2", "torch.ones(2)"),
    "str": ("''", "'x'", "None", "1", "'relu\\0'", "b'relu'", "'gelu' * 999", "'\\ud800'"),
    "Generator": ("5", "'x'", "torch.Generator()"),
    "ScalarType": ("torch.float16", "torch.int64", "None", "'x'", "99", "-1", "torch.complex64"),
}  # fmt: skip


@cache
def schemas() -> list[torch.FunctionSchema]:
    """Those of all overloads."""
    registered = torch._C._jit_get_all_schemas()
    ours = [schema for schema in registered if schema.name.startswith(SPACE)]
    return sorted(ours, key=lambda schema: (schema.name, schema.overload_name))


def draw_operator(random: Random) -> Call:
    """A call of one of them, one in three spoilt."""
    schema = random.choice(schemas())
    name = schema.name.removeprefix(SPACE)
    if name.rstrip("_") in TRUTHS:
        return _finished(random, schema, *_known(random, schema, name))
    return _finished(random, schema, *from_the_table(random, schema, name))


def _known(random: Random, schema: torch.FunctionSchema, name: str) -> tuple[Call, dict[str, str]]:
    """A call whose results the truth knows, and its arguments."""
    values = _Values(random, name)
    code = {argument.name: values.code(argument.name) for argument in schema.arguments}
    call = _call(random, schema)
    call.operands, call.setup, call.expect = values.operands, values.setup, values.expect
    call.oracle = values.oracle()
    if call.writes and values.operands[0].layout.overlaps:
        call.expect, call.oracle = values.operands[0].layout.expectation_in_place, None
    call.allow_refusals()
    return call, code


def from_the_table(
    random: Random, schema: torch.FunctionSchema, name: str
) -> tuple[Call, dict[str, str]]:
    """A call that gives the same bits when it is made again; its arguments are the table's."""
    row = operator_named(name)
    if row is None:
        raise NotImplementedError(f"no row of the table of operators is named {name!r}")
    call = _call(random, schema)
    known = operator_arguments(random, row, call)
    if "generator" not in [argument.name for argument in schema.arguments]:
        code = known
    else:
        call.setup.append(f"g = torch.Generator().manual_seed({random.randrange(99)})")
        known["generator"] = random.choice(("None", "g"))
        code = {a.name: known[a.name] for a in schema.arguments if a.name in known}
    if call.writes:
        call.writes = code[call.writes]
    call.twin = AGAIN
    return call, code


def _call(random: Random, schema: torch.FunctionSchema) -> Call:
    """A call that is yet to get its arguments."""
    name, overload = schema.name.removeprefix(SPACE), schema.overload_name or "default"
    call = Call(f"ops.{name}.{overload}", "", may_name_schema=True)
    call.returns_state = "generator" in [argument.name for argument in schema.arguments]
    if call.returns_state:
        call.seeding = f"torch.default_generator.manual_seed({random.randrange(99)})"
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    call.writes = schema.arguments[0].name if writes else None
    return call


def _finished(
    random: Random, schema: torch.FunctionSchema, call: Call, code: dict[str, str]
) -> Call:
    """The call with its expression, perhaps spoilt or inside a context."""
    if random.random() < 0.33:
        _spoil(random, call, schema, code)
    if random.random() < 0.3:
        call.contexts.append(
            f"fused_dropout._core.extension.use_isa({random.choice(extension.available_isas())!r})"
        )
    if random.random() < 0.2:
        call.contexts.append(random.choice(("torch.no_grad()", "torch.inference_mode()")))
    given = ", ".join(f"{key}={value}" for key, value in code.items())
    call.expression = f"torch.{call.target.replace('ops', 'ops.fused_dropout', 1)}({given})"
    call.twin = call.expression if call.twin == AGAIN else call.twin
    return call


def _spoil(random: Random, call: Call, schema: torch.FunctionSchema, code: dict[str, str]) -> None:
    argument = random.choice(schema.arguments)
    kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
    kind = {"List[int]": "int[]", "List[int": "int[]", "SymInt": "int"}.get(kind, kind)
    kind = "int[]" if kind.startswith("List") else kind
    if argument.name == "dtype":
        kind = "ScalarType"
    if argument.name == "rng_state" and random.random() < 0.5:
        call.setup.append(f"bad = {random.choice(pools.BAD_STATES)}")
    else:
        call.setup.append(f"bad = {random.choice(WRONG.get(kind, WRONG['str']))}")
    if call.writes and code.get(argument.name) == call.writes:
        call.writes = "bad"
    code[argument.name] = "bad"
    call.expect, call.oracle, call.twin = "either", None, None


class _Values:
    """Arguments that fit each other, as far as each is asked for."""

    def __init__(self, random: Random, name: str) -> None:
        self.random = random
        self.name = name
        self.base = name.rstrip("_")
        self.operands: list[Operand] = []
        self.setup: list[str] = []
        self.settings: dict[str, Any] = {}
        self.expect = "value"
        self.dtype = random.choice(DTYPES)
        self.shape = self._draw_shape()

    def _draw_shape(self) -> Shape:
        random = self.random
        if self.base.startswith("dropconnect"):
            rows = random.choice((0, 1, 2, 3, 7, 8, 20))
            return (rows, random.choice((0, 1, 7, 64, 128, 129, 200)))
        if self.base.startswith("drop_block"):
            return draw_shape(random, random.choice((3, 4, 5)))
        dims = random.choice((1, 2, 3, 4)) if self.base.startswith("bias_act") else None
        return draw_shape(random, dims)

    def code(self, name: str) -> str:
        """The argument's code; what it stands for is kept for the truth."""
        make = getattr(self, f"_{name}", None)
        if make is None:
            raise NotImplementedError(
                f"an operator has an argument {name!r}, which _Values in {__file__} must learn"
            )
        return str(make())

    def oracle(self) -> Oracle | None:
        """What knows the results; fails for an operator that it does not know."""
        truth, settings = TRUTHS[self.base], self.settings

        def results(tensors: Tensors) -> tuple[Tensor, ...]:
            seed, offset = settings.get("rng_state", (0, 0))
            if "state" in tensors:
                seed, offset = tensors["state"].tolist()
            return truth(tensors, {**settings, "seed": seed, "offset": offset})

        elementwise = self.base in ("mask", "packed_mask", "uniform_noise")
        differentiable = tuple(operand.name for operand in self.operands)
        if "_d_" in self.base or self.base.endswith(("backward", "_mask", "_bits")):
            differentiable = ()
        terms = max(1, math.prod(self.shape)) + self.settings.get("outs", 0)
        products = self.base.startswith(("dropconnect_linear", "dropconnect_moments"))
        reduces = products or self.base.endswith(("_d_both", "_backward"))
        padded = self.base == "dropconnect_mask_bits"
        temperature = settings.get("temperature", math.inf)
        return Oracle(
            results,
            elementwise,
            differentiable=differentiable,
            sums=terms if reduces else 0,
            gradient_sums=terms,
            padded=padded,
            extra_ulps=logistic_ulps(temperature),
        )

    # ---- tensors ---------------------------------------------------------------------------------

    def _operand(self, name: str, shape: Shape, kinds: tuple[str, ...] = ("normal",)) -> str:
        first = not self.operands
        written = first and self.name.endswith("_")
        self.operands.append(
            draw_operand(
                self.random, name, shape, self.dtype, kinds=kinds, through_copy=written,
                own_memory=written and self.random.random() < 0.95, grad=0.15,
            )
        )  # fmt: skip
        return name

    def _maybe(self, name: str, shape: Shape) -> str:
        return self._operand(name, shape) if self.random.random() < 0.6 else "None"

    def _input(self) -> str:
        optional = self.base.startswith("bias_act") and "_d_" in self.base
        if optional and self._activation() == "'none'" and self.random.random() < 0.5:
            return "None"
        return self._operand("input", self.shape)

    def _grad_output(self) -> str:
        if self.base.startswith("dropconnect"):
            return self._operand("grad_output", (self.shape[0], self._outs()))
        return self._operand("grad_output", self.shape)

    def _weight(self) -> str:
        return self._operand("weight", (self._outs(), self.shape[1]))

    def _bias(self) -> str:
        if self.base.startswith("dropconnect"):
            return self._maybe("bias", (self._outs(),))
        names = [operand.name for operand in self.operands]
        if "_d_" in self.base and "input" not in names:
            return "None"
        return self._maybe("bias", self.shape[-1:])

    def _residual(self) -> str:
        return self._maybe("residual", self.shape)

    def _mean(self) -> str:
        return self._operand("mean", self.shape)

    def _variance(self) -> str:
        operand = draw_operand(
            self.random, "variance", self.shape, self.dtype, kinds=("positive",), grad=0
        )
        while "bit" in operand.layout.name or "part" in operand.layout.name:
            operand = draw_operand(
                self.random, "variance", self.shape, self.dtype, kinds=("positive",), grad=0
            )
        self.operands.append(operand)
        return "variance"

    def _logit_p(self) -> str:
        dtype = "float64" if self.dtype == "float64" else "float32"
        shape = self.random.choice(((), (1,), (1, 1)))
        self.operands.append(draw_operand(self.random, "logit_p", shape, dtype, grad=0.15))
        return "logit_p"

    def _rng_state(self) -> str:
        pool = pools.GOOD_STATES
        if self.random.random() < 0.2:
            pool, self.expect = pools.STRIDED_STATES, "either"
        code, seed, offset = self.random.choice(pool)
        self.setup.append(f"state = {code}")
        self.settings["rng_state"] = (seed, offset)
        return "state"

    def _generator(self) -> str:
        if self.random.random() < 0.5:
            return "None"
        self.setup.append(f"g = torch.Generator().manual_seed({self.random.randrange(99)})")
        return "g"

    def _bits(self) -> str:
        """Any bits: drop_block takes them as they come."""
        shared = self._share_channels() == "True"
        count = self.shape[0] * (1 if shared else self.shape[1]) * math.prod(self.shape[2:])
        words = (-(-count // 128) + 1) * 4
        self.setup.append(
            f"bits = torch.randint(-(2**31), 2**31, ({words},), dtype=torch.int32, "
            f"generator=torch.Generator().manual_seed({self.random.randrange(99)}))"
        )
        self._keep("bits")
        return "bits"

    def _scale(self) -> str:
        if self.base != "drop_block":
            return self._number("scale", (1.0, 2.0, 0.5, 1 / 0.9, 0.0))
        count = self.random.choice((0, 1, self.shape[0]))
        self.setup.append(f"scale = torch.arange(1, {count + 1}, dtype=torch.float64) / 3")
        self._keep("scale")
        return "scale"

    def _mask_bits(self) -> str:
        if self.random.random() < 0.5:
            return "None"
        shape = stored_shape(self.shape, self._outs(), self._share())
        self.setup.append(
            f"mask_bits = torch.randint(-(2**31), 2**31, {shape}, dtype=torch.int32, "
            f"generator=torch.Generator().manual_seed({self.random.randrange(99)}))"
        )
        self._keep("mask_bits")
        return "mask_bits"

    def _keep(self, name: str) -> None:
        """Gives the truth what the setup's last line makes."""
        names: dict[str, Any] = {"torch": torch}
        exec(self.setup[-1], names)
        self.settings[name] = names[name]

    # ---- numbers ---------------------------------------------------------------------------------

    def _once(self, name: str, value: Any) -> Any:
        return self.settings.setdefault(name, value)

    def _number(self, name: str, choices: tuple[float, ...]) -> str:
        return repr(self._once(name, self.random.choice(choices)))

    def _outs(self) -> int:
        return int(self._once("outs", self.random.choice((0, 1, 7, 8, 9, 17))))

    def _share(self) -> int:
        return int(self._once("rows_per_mask", self.random.choice((1, 2, 3, 8, 50, 2**63 - 1))))

    def _rows_per_mask(self) -> str:
        return repr(self._share())

    def _p(self) -> str:
        p = float(pools.value_of(pools.draw_p(self.random)))  # type: ignore[arg-type]
        return repr(self._once("p", p))

    def _gamma(self) -> str:
        return self._number("gamma", (0.0, 0.01, 0.1, 0.5, 1.0, 2**-33))

    def _share_channels(self) -> str:
        return repr(self._once("share_channels", self.random.random() < 0.4))

    def _shift(self) -> str:
        return self._number("shift", (0.0, 0.0, 1.5, -0.3))

    def _fill(self) -> str:
        return self._number("fill", (0.0, 0.0, -1.75, 2.0))

    def _sigma(self) -> str:
        return self._number("sigma", (0.0, 1.0, 0.3, 40.0))

    def _eps(self) -> str:
        return self._number("eps", (1e-8, 1e-6, 1.0))

    def _temperature(self) -> str:
        return self._number("temperature", (0.1, 0.7, 3.0))

    def _activation(self) -> str:
        names = ("none", "relu", "gelu", "gelu_tanh", "silu")
        return repr(self._once("activation", self.random.choice(names)))

    def _shared_dims(self) -> str:
        dims = [dim for dim in range(len(self.shape)) if self.random.random() < 0.3]
        return repr(self._once("shared_dims", dims))

    def _block(self) -> str:
        sides = [self.random.randint(1, max(1, min(size, 5))) for size in self.shape[2:]]
        return repr(self._once("block", sides))

    def _scales(self) -> str:
        return repr(self._once("scales", self.random.choice((0, 1, self.shape[0]))))

    def _rows(self) -> str:
        return repr(self._once("rows", self.random.choice((0, 1, 3, 17))))

    def _cols(self) -> str:
        return repr(self._once("cols", self.random.choice((0, 1, 31, 128, 129, 300))))

    def _masks(self) -> str:
        return repr(self._once("masks", self.random.choice((0, 1, 3))))

    def _first_mask(self) -> str:
        return repr(self._once("first_mask", self.random.choice((0, 0, 1, 5))))

    def _out_features(self) -> str:
        return repr(self._outs())

    def _in_features(self) -> str:
        return repr(self._once("in_features", self.shape[1]))

    def _stream(self) -> str:
        return repr(self._once("stream", self.random.randrange(128)))

    def _digits(self) -> str:
        return repr(self._once("digits", self.random.randrange(1, 33)))

    def _mean_scale(self) -> str:
        return self._number("mean_scale", (1.0, 0.7, 0.0))

    def _variance_scale(self) -> str:
        return self._number("variance_scale", (1.0, 0.21, 0.0))

    def _mask_bias(self) -> str:
        return repr(self._once("mask_bias", self.random.random() < 0.5))

    def _first(self) -> str:
        return repr(self._once("first", self.random.choice((0, 0, 128, 128 * 2**33))))

    def _size(self) -> str:
        return repr(self._once("size", list(draw_shape(self.random))))

    def _dtype(self) -> str:
        chosen = self.random.choice((torch.float32, torch.float64))
        return str(self._once("dtype", chosen))
