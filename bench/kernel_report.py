"""What did the compiler make of the CUDA kernels? Run: python bench/kernel_report.py

Prints, for each kernel and architecture in the built extension (or in the files named): registers,
local memory, stack, static shared memory, and which instructions its main loop consists of. Needs
no GPU, but cuobjdump and nvdisasm (the CUDA toolkit has them, and so has the triton package).

With --model, and without it where no file is named and nvcc is there, the cost model in
kernel_model/ compiles the kernels for sm_90, executes their machine code for the benchmarks'
shapes, and prints issue slots and predicted times: `--model d_weight` those of the cases with
"d_weight" in their name, launch by launch.

Exit status: 0 all goals met; 1 a kernel uses local memory (it spills), FFMAs are a smaller share of
a float main loop than MIN_FFMA_SHARE, or a case misses one of the goals in kernel_model/goals.py;
2 nothing to report on.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_model.cases import chosen
from kernel_model.names import demangle, short_name
from kernel_model.predict import predict
from kernel_model.registers import SassError
from kernel_model.report import print_report
from kernel_model.sass import MULTIPLY_ADDS, main_loop, parse_sass
from kernel_model.tools import ReportError, find_tool, run
from rich.console import Console
from rich.table import Table

MIN_FFMA_SHARE = 0.60
# One of each must be in the extension.
GOAL_KERNELS = (
    "dropconnect::forward_kernel<float, false, false>",
    "dropconnect::forward_kernel<float, false, true>",
    "dropconnect::forward_kernel<float, true, false>",
    "dropconnect::gradients_kernel<float, false>",
    "dropconnect::gradients_kernel<float, true>",
)
COMPILED_FOR = ("80", "90")  # where a .cu file is named
SHOWN_INSTRUCTIONS = 5


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes, as are the others
    shared: int  # static only: what a launch asks for on top is not in the binary
    local: int


def parse_resources(text: str) -> dict[str, Resources]:
    """The functions in the output of `cuobjdump -res-usage`."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    return {
        name: Resources(*(int(number) for number in numbers))
        for name, *numbers in re.findall(pattern, text)
    }


@dataclass(frozen=True)
class Kernel:
    name: str  # "dropconnect::forward_kernel<float>"
    architecture: str
    resources: Resources
    local_stores: int  # instructions
    local_loads: int
    loop: Counter[str]

    def share(self, kind: str) -> float:
        return self.loop[kind] / max(self.loop.total(), 1)

    def problems(self) -> list[str]:
        """The goals that this kernel misses."""
        missed = []
        if self.local_stores or self.local_loads or self.resources.local:
            missed.append(
                f"uses local memory ({self.local_stores} stores, {self.local_loads} loads)"
            )
        if self.name in GOAL_KERNELS and self.share("FFMA") < MIN_FFMA_SHARE:
            missed.append(
                f"main loop is {self.share('FFMA'):.1%} FFMA, the goal is {MIN_FFMA_SHARE:.0%}"
            )
        return [f"{self.name} for {self.architecture}: {text}" for text in missed]


def kernels_of(sass: str, resources: str) -> list[Kernel]:
    """The kernels of one cubin."""
    architecture, functions = parse_sass(sass)
    used = parse_resources(resources)
    names = dict(zip(functions, demangle(list(functions)), strict=True))
    kernels = []
    for mangled, instructions in functions.items():
        counts = Counter(i.base for i in instructions)
        loop = Counter(i.kind for i in main_loop(instructions))
        name = short_name(names[mangled])
        facts = (used[mangled], counts["STL"], counts["LDL"], loop)
        kernels.append(Kernel(name, architecture, *facts))
    return kernels


def table_of(kernels: Iterable[Kernel]) -> Table:
    reserved = "sm_90 and newer reserve 1024 bytes of shared memory"
    table = Table("kernel", title="CUDA kernels", caption=f"main loop: instructions; {reserved}")
    for heading in ("arch", "registers", "local st/ld", "stack", "static shared", "loop", "FMA"):
        table.add_column(heading, justify="right")
    table.add_column("most of the main loop", no_wrap=True)
    before = ""
    for kernel in sorted(kernels, key=lambda k: (k.name, len(k.architecture), k.architecture)):
        resources, mix = kernel.resources, kernel.loop
        share = sum(kernel.share(kind) for kind in MULTIPLY_ADDS)
        table.add_row(
            kernel.name if kernel.name != before else "",
            kernel.architecture,
            str(resources.registers),
            f"{kernel.local_stores}/{kernel.local_loads}",
            str(resources.stack),
            str(resources.shared),
            str(mix.total()),
            f"{share:.1%}" if share > 0.1 else "",
            ", ".join(f"{n} {kind}" for kind, n in mix.most_common(SHOWN_INSTRUCTIONS)),
            style="red" if kernel.problems() else None,
        )
        before = kernel.name
    return table


# ---- files and tools ----------------------------------------------------------------------------


def newest_architecture() -> str:
    """The newest one that ptxas knows, such as 'sm_121'."""
    allowed = re.findall(r"'sm_(\d+)'", run([find_tool("ptxas"), "--help"]))
    return f"sm_{max(map(int, allowed))}"


def cubins_of(file: Path, folder: Path, assemble_for: str | None) -> list[Path]:
    """The images in `file`, written to `folder`; its PTX assembled too, where that is asked for."""
    if file.suffix == ".cubin":
        return [file]
    if file.suffix == ".cu":
        fatbin = folder / f"{file.stem}.fatbin"
        images = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in COMPILED_FOR]
        run([find_tool("nvcc"), "-O3", "-std=c++17", "-fatbin", *images, file, "-o", fatbin])
        file = fatbin
    cuobjdump = find_tool("cuobjdump")
    run([cuobjdump, "-xelf", "all", file.resolve()], cwd=folder)
    if assemble_for:
        run([cuobjdump, "-xptx", "all", file.resolve()], cwd=folder)
        for ptx in sorted(folder.glob("*.ptx")):
            cubin = ptx.with_suffix(f".{assemble_for}.cubin")
            run([find_tool("ptxas"), f"-arch={assemble_for}", ptx, "-o", cubin])
    return sorted(folder.glob("*.cubin"))


def built_extension() -> Path:
    """The installed extension module, which need not be importable here."""
    package = importlib.util.find_spec("fused_dropout")
    for place in (package and package.submodule_search_locations) or ():
        for file in Path(place).glob("_C.*"):
            return file
    raise ReportError("fused_dropout's extension is not built (see docs/install.md)")


def kernels_in(file: Path, assemble_for: str | None) -> list[Kernel]:
    """The kernels of a built extension, a .fatbin, a .cubin, or a .cu file that needs no torch."""
    if not file.is_file():
        raise ReportError(f"{file} does not exist")
    cuobjdump = find_tool("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        kernels = []
        for cubin in cubins_of(file, Path(folder), assemble_for):
            dump = (run([cuobjdump, option, cubin]) for option in ("-sass", "-res-usage"))
            kernels += kernels_of(*dump)
    if not kernels:
        raise ReportError(f"{file.name} holds no CUDA kernels")
    return kernels


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "files", nargs="*", type=Path, help="default: the built extension, with all goal kernels"
    )
    parser.add_argument(
        "--newest",
        action="store_true",
        help="also assemble the PTX in a file, as a driver would, for the newest GPU ptxas knows",
    )
    parser.add_argument("--no-model", action="store_true", help="only what the compiler made")
    parser.add_argument(
        "--model", nargs="*", metavar="CASE", help="only the model, of the cases with these words"
    )
    args = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        if args.model is not None:
            return report_predictions(args.model)
        status = report_kernels(console, args.files, args.newest)
        if not args.files and not args.no_model and shutil.which("nvcc"):
            status = max(status, report_predictions([]))
        return status
    except (ReportError, SassError) as error:
        print(f"kernel_report.py: error: {error}", file=sys.stderr)
        return 2


def report_predictions(words: Sequence[str]) -> int:
    """Of all cases, or those with all of the words, which are shown launch by launch."""
    cases = chosen(words)
    if not cases:
        raise ReportError(f"no case has {' '.join(words)} in its name")
    missed = print_report([predict(case) for case in cases], details=bool(words))
    for miss in missed:
        print(f"missed  {miss}")
    return 1 if missed else 0


def report_kernels(console: Console, named: Sequence[Path], newest: bool) -> int:
    """The kernels of the files, or of the built extension with all that have goals."""
    assemble_for = newest_architecture() if newest else None
    files = named or [built_extension()]
    kernels: list[Kernel] = []
    for kernel in itertools.chain(*(kernels_in(file, assemble_for) for file in files)):
        if kernel not in kernels:  # two source files may hold the same one
            kernels.append(kernel)
    problems = [problem for kernel in kernels for problem in kernel.problems()]
    if not named:
        present = {kernel.name for kernel in kernels}
        absent = [name for name in GOAL_KERNELS if name not in present]
        problems += [f"{name}: not in the extension" for name in absent]
    console.print(table_of(kernels))
    for problem in problems:
        console.print(f"[red]missed[/]  {problem}", highlight=False)
    if not problems:
        console.print(f"{len(kernels)} kernels: no local memory, goals met", highlight=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
