"""What a call is made from: its arguments one by one, so that one of them can be spoilt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from fused_dropout import reference

from . import arguments as pools
from .call import Call, Oracle
from .operands import Operand, draw_shape


@dataclass
class Draft:
    """A good call of a function, with its arguments as code by name."""

    function: str  # code
    arguments: dict[str, str] = field(default_factory=dict)
    operands: list[Operand] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    oracle: Oracle | None = None
    expect: str = "value"
    names: tuple[str, ...] = ()
    writes: str | None = None
    seeding: str = ""
    twin: bool = False  # no oracle knows the masks: two calls must agree
    drawn: bool = True  # random numbers are needed
    may_alias: bool = False
    format_of: str | None = None
    optional: tuple[str, ...] = ()  # operands that may be None
    spoilable: tuple[str, ...] = ()  # arguments that may be spoilt besides those given
    seed: int = 0
    offset: int = 0

    def add_operand(self, operand: Operand) -> None:
        self.operands.append(operand)
        self.arguments[operand.name] = operand.name

    def add_p(self, random: Random, name: str = "p") -> float:
        """Draws a drop probability, now and then of an odd type."""
        code = pools.draw_p(random)
        if random.random() < 0.05:
            code = random.choice(pools.ODD_P)
            self.expect, self.names = "either", (name,)
        self.arguments[name] = code
        return float(pools.value_of(code))  # type: ignore[arg-type]

    def add_flag(self, random: Random, name: str, likely: float) -> bool:
        value = random.random() < likely
        self.arguments[name] = repr(value)
        return value

    def add_source(self, random: Random, *, known: bool = False) -> None:
        """Draws a seed, a state, a generator, or nothing: torch's own generator."""
        kind = random.choices(("seed", "state", "generator", "none"), (9, 6, 2, 1))[0]
        if known and kind in ("generator", "none"):
            kind = "seed"
        if kind == "seed":
            code = random.choice((*pools.GOOD_SEEDS, repr(random.randrange(2**64))))
            if random.random() < 0.04:
                code = random.choice(pools.ODD_SEEDS)
                self.expect, self.names = "either", (*self.names, "seed")
            self.arguments["seed"] = code
            self.seed = int(pools.value_of(code))  # type: ignore[call-overload]
        elif kind == "state":
            states = (*pools.GOOD_STATES, *pools.STRIDED_STATES)
            code, self.seed, self.offset = random.choice(states)
            self.setup.append(f"state = {code}")
            self.arguments["rng_state"] = "state"
        elif kind == "generator":
            self.setup.append(f"g = torch.Generator().manual_seed({random.randrange(99)})")
            self.arguments["generator"] = "g"
            self.twin = self.drawn
        else:
            self.seeding = f"torch.default_generator.manual_seed({random.randrange(99)})"
            self.twin = self.drawn

    def settle(self, random: Random, p: float, training: bool, inplace: bool = False) -> None:
        """What follows from the arguments that all functions of the dropout family have."""
        first = self.operands[0]
        empty = math.prod(first.shape) == 0
        self.drawn = training and not empty and 0.0 < reference.keep_rate(p) < 1.0
        self.may_alias = inplace or not training or empty or p == 0
        self.writes = first.name if inplace else None
        self.format_of = None if inplace or not training else first.name
        self.add_source(random)

    def add_contexts(self, random: Random, isas: tuple[str, ...]) -> None:
        if random.random() < 0.2:
            self.contexts.append(random.choice(("torch.no_grad()", "torch.inference_mode()")))
        if random.random() < 0.3:
            self.contexts.append(f"fused_dropout._core.extension.use_isa({random.choice(isas)!r})")
        if random.random() < 0.03 and not self.seeding:
            self.contexts.append("torch.device('meta')")

    def can_be_on_meta(self) -> bool:
        """Whether the call needs nothing from other devices, and writes nothing."""
        return bool(self.operands) and self.writes is None and "seed" in self.arguments

    def on_meta(self) -> None:
        """Moves all operands to the meta device."""
        self.operands = [
            Operand(o.name, o.shape, o.dtype, o.kind, o.seed, o.layout) for o in self.operands
        ]
        self.setup += [f"{o.name} = {o.name}.to('meta')" for o in self.operands]
        self.format_of = None

    def call(self, target: str) -> Call:
        """The call as it stands."""
        given = [f"{name}={code}" for name, code in self.arguments.items()]
        expression = f"{self.function}({', '.join(given)})"
        return Call(
            target=target,
            expression=expression,
            operands=self.operands,
            setup=self.setup,
            contexts=self.contexts,
            expect=self.expect,
            names=self.names,
            oracle=None if self.twin else self.oracle,
            writes=self.writes,
            seeding=self.seeding,
            twin=expression if self.twin else None,
            may_alias=self.may_alias,
            format_of=self.format_of,
        )

    # ---- mistakes --------------------------------------------------------------------------------

    def spoil(self, random: Random) -> None:
        """Makes one argument a wrong one."""
        name = random.choice(sorted({*self.arguments, *self.spoilable}))
        self.oracle, self.twin, self.may_alias = None, False, True
        self.expect, self.names = "error", (name, *self.names)
        if any(operand.name == name for operand in self.operands):
            self._spoil_operand(random, name)
        elif name in ("p", "drop_prob"):
            self.arguments[name] = random.choice(pools.BAD_P)
        elif name in ("seed", "rng_state", "generator"):
            self._spoil_source(random, name)
        elif name in pools.BAD:
            self.arguments[name] = random.choice(pools.BAD[name])
            if name == "device":  # named by what it is
                self.names += ("cuda", "xpu", "Device", "NVIDIA")
        else:  # a flag: whatever counts as true or false
            odd = ("None", "'x'", "2", "[]", "torch.ones(2)", "np.ones(2)", "object()")
            self.arguments[name] = random.choice(odd)
            self.expect, self.names = "either", ()
            if "inplace" in self.arguments:
                self.writes = self.operands[0].name

    def _spoil_source(self, random: Random, name: str) -> None:
        if random.random() < 0.2:
            self.arguments.update(seed="1", generator="torch.Generator()")
            self.names = ("generator", "seed", *self.names)
            return
        for other in ("seed", "rng_state", "generator"):
            self.arguments.pop(other, None)
        self.setup.append(f"source = {random.choice(pools.BAD[name])}")
        self.arguments[name] = "source"
        if not self.drawn and name != "generator":
            self.expect = "either"

    def _spoil_operand(self, random: Random, name: str) -> None:
        index = next(i for i, operand in enumerate(self.operands) if operand.name == name)
        old = self.operands[index]
        others = tuple(operand.name for operand in self.operands)
        kind = random.choice(("no tensor", "no dense tensor", "dtype", "shape", "meta"))
        self.format_of = None
        if kind == "no tensor":
            self.arguments[name] = random.choice(pools.NO_TENSORS)
        elif kind == "no dense tensor":
            self.setup.append(f"bad = {random.choice(pools.BAD_TENSORS)}")
            self.arguments[name] = "bad"
            self.names += others
            if not self.drawn:
                self.expect = "either"
        elif kind == "dtype":
            dtype = random.choice(pools.BAD_DTYPES)
            self.arguments[name] = f"numbers({old.shape}, torch.{dtype}, 1)"
            self.names += others
            if not self.drawn or name in ("x", "branch"):
                self.expect = "either"
        elif kind == "shape" and len(self.operands) > 1:
            shape = draw_shape(random)
            self.arguments[name] = f"numbers({shape}, torch.{old.dtype}, 1)"
            self.names += others
            self.expect = "either"
        elif kind == "meta" and len(self.operands) > 1:
            self.arguments[name] = f"{name}.to('meta')"
            self.names += others
            if not self.drawn:
                self.expect = "either"
        else:
            self.arguments[name] = "None"
            if name in self.optional:
                self.expect = "either"
        if self.writes == name:
            self.writes = None
