"""The tables of docs/performance.md, from the JSON files of bench/results.

Times are medians; so are ratios, of ratios that the benchmark took within each of its rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fused_dropout._tools.bench.columns import three_digits
from fused_dropout._tools.bench.harness import OURS
from fused_dropout._tools.pages.markdown import markdown_table

Result = Mapping[str, Any]
Row = Mapping[str, Any]
DENSE, NAIVE, COMPILED = "dense", "naive PyTorch", "compiled naive"
INSTRUCTION_SETS = {"avx512": "AVX-512", "avx2": "AVX2"}
LAYERS = {  # what readers know them by
    OURS: "fused_dropout",
    DENSE: "dense: `F.linear`, no masks",
    NAIVE: "naive PyTorch: `bernoulli [B, O, I] * W`",
    COMPILED: "the same under `torch.compile`",
}


def per_instruction_set(results: Path, name: str) -> dict[str, Path]:
    """The newest file of a benchmark on Intel's processor, by instruction set, widest first."""
    found: dict[str, Path] = {}
    for path in sorted(results.glob(f"{name}-intel-*.json"), key=_date):
        found[read(path)["device"]["isa"]] = path
    return {isa: found[isa] for isa in INSTRUCTION_SETS}


def read(path: Path) -> dict[str, Any]:
    """A JSON file of bench/results."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def performance_tables(results: Path) -> dict[str, list[str]]:
    """By name, the lines of every table; `results`: the folder bench/results."""
    dropconnect = per_instruction_set(results, "dropconnect")
    return {
        "dropconnect": _dropconnect(dropconnect, 0),
        "dropconnect of 4096 features": _dropconnect(dropconnect, 1),
        "shared masks": _shared_masks(per_instruction_set(results, "mask-weight")),
        "family": _family(results),
        "layers": _layers(results),
        "calls": _calls(results),
    }


def _date(path: Path) -> str:
    date: str = read(path)["date"]
    return date


def _dropconnect(files: Mapping[str, Path], number: int) -> list[str]:
    header = [
        *("layer", "p", "forward ms", "d_input ms", "d_weight ms", "total ms"),
        *("against naive", "against dense", "peak extra memory"),
    ]
    rows = []
    for isa, path in files.items():
        rows.append([f"**{INSTRUCTION_SETS[isa]}**", *[""] * (len(header) - 1)])
        for row in read(path)["results"][number]["rows"]:
            seconds = [row["seconds"][phase]["median"] for phase in _PHASES]
            rows.append(
                [
                    LAYERS[row["name"]],
                    "" if row["p"] is None else f"{row['p']:g}",
                    *(three_digits(1e3 * value) for value in seconds),
                    _faster(row, "speedup_over_naive"),
                    _times(row, "times_dense"),
                    f"{row['peak_extra_bytes'] / 2**20:.0f} MiB",
                ]
            )
    return markdown_table(header, rows)


_PHASES = ("forward", "d_input", "d_weight", "total")


def _shared_masks(files: Mapping[str, Path]) -> list[str]:
    header = ["rows that share a mask", "p"]
    for isa in files:
        header += [f"{INSTRUCTION_SETS[isa]}: against dense", "against eager PyTorch"]
    documents = [read(path)["results"] for path in files.values()]
    cells: dict[tuple[str, float], list[str]] = {}
    for results in documents:
        for result in results:
            if not result["what"].startswith("layer"):
                continue
            shared = result["what"].removeprefix("layer, ").removesuffix(" rows to a mask")
            for row in result["rows"]:
                if row["name"] == OURS:
                    own = cells.setdefault((shared, row["p"]), [])
                    own += [_times(row, "times_dense"), _faster(row, "speedup_over_eager")]
    return markdown_table(header, [[rows, f"{p:g}", *own] for (rows, p), own in cells.items()])


@dataclass(frozen=True)
class _OpRow:
    """Where the figures of one row of the tables of ops and layers are."""

    op: str
    file: str  # the start of the file's name, and of the script that made it
    phase: str
    timed: str  # the phase in words
    p: float | None
    which: Mapping[str, Any]  # what the result says of itself
    peer: tuple[str, str] | None  # what people use today: its name here, and the file's figure
    floor: tuple[str, str] | None = None  # the copy of the same bytes, or what drops nothing, alike


_BOTH, _FORWARD = "forward and backward", "forward"
_FP32, _BF16 = {"dtype": "float32"}, {"dtype": "bfloat16"}
_TORCH_DROPOUT = ("`F.dropout` at p = 0.5", "speedup_over_torch")
_CLONES = ("`clone` of input and gradient", "times_copy")
_CLONE = ("`clone`", "times_clone")
_EAGER = ("eager PyTorch", "speedup_over_eager")
_FAMILY = (
    *(
        _OpRow("`dropout`", "dropout", "total", _BOTH, p, dtype, _TORCH_DROPOUT, _CLONES)
        for p in (0.5, 0.1)
        for dtype in (_FP32, _BF16)
    ),
    *(
        _OpRow(
            "`dropout`, in place", "dropout", "in place", _FORWARD, p, _BF16,
            _TORCH_DROPOUT, ("`copy_` into a warm tensor", "times_copy"),
        )
        for p in (0.5, 0.1)
    ),
    _OpRow(
        "`dropout2d`", "dropout", "dropout2d", _FORWARD, 0.5, _BF16,
        ("`F.dropout2d`", "speedup_over_torch"), ("`clone`", "times_copy"),
    ),
    _OpRow(
        "`drop_path`", "drop-path", "forward", _FORWARD, 0.1,
        {"form": "drop_path(branch)", "shape": [128, 197, 768], **_BF16}, _EAGER, _CLONE,
    ),
    _OpRow(
        "`drop_block2d`, block 7, each channel its own", "drop-block", "forward", _FORWARD, 0.1,
        {"blocks": "own in each channel"},
        ("torchvision's form", "faster_than_torchvision's_form"), _CLONE,
    ),
    _OpRow(
        "`drop_block2d`, block 7, all channels the same", "drop-block", "forward", _FORWARD, 0.1,
        {"blocks": "same in all channels"}, ("timm's form", "faster_than_timm's_form"), _CLONE,
    ),
    _OpRow(
        "`bias_act_dropout_add`, GELU", "bias-act-dropout-add", "total", _BOTH, 0.1, _FP32, _EAGER,
        ("`copy_` into a warm tensor", "times_floor"),
    ),
    *(
        _OpRow(f"`{op}`", "gaussian-dropout", "total", _BOTH, None, {"op": op, **_FP32}, _EAGER)
        for op in ("gaussian_dropout", "concrete_dropout")
    ),
)  # fmt: skip


_STEP = "a training step"
_MASKED_PASSES = ("1000 passes with masks", "speedup_over_1000_passes")
_LAYERS = (
    *(
        _OpRow(
            "`dropconnect_gaussian`, 1000 samples, ReLU", "dropconnect-gaussian", "forward",
            _FORWARD, 0.5, {"what": "1000 samples", "shape": shape}, _MASKED_PASSES,
        )
        for shape in ([1, 1024, 1024], [32, 1024, 1024], [1, 128, 1024], [32, 128, 1024])
    ),
    *(
        _OpRow(
            f"`WeightDrop` of `nn.{what}`", "weight-drop", "total", _STEP, 0.5, {"what": what},
            ("`F.dropout` of the weight", "speedup_over_eager"),
            ("the layer without masks", "times_plain"),
        )
        for what in ("LSTM", "Conv2d")
    ),
    _OpRow(
        "`EmbeddingDropout`", "weight-drop", "total", _STEP, 0.5, {"what": "Embedding"},
        ("a mask over the whole table", "speedup_over_eager"),
        ("the layer without masks", "times_plain"),
    ),
    _OpRow(
        "`dropout_linear`: three LoRA adapters beside a layer", "dropout-linear", "total", _STEP,
        0.1, {}, ("`F.linear(F.dropout(x), A)`", "speedup_over_eager"),
        ("the block without dropout", "times_dense"),
    ),
    *(
        _OpRow(
            f"`drop_path_skip`, {what}", "drop-path-skip", "total", _STEP, 0.4, {"what": what},
            ("running all samples", "speedup_over_zeroing"),
            ("the block without dropping", "times_dense"),
        )
        for what in ("transformer block", "ConvNeXt block")
    ),
    _OpRow(
        "`replace` on a small ViT", "replace", "total", _STEP, 0.1, {}, None,
        ("the model before", "times_before"),
    ),
)  # fmt: skip


def _family(results: Path) -> list[str]:
    return _table(_FAMILY, "tensor", "a copy of the same bytes", results)


def _layers(results: Path) -> list[str]:
    return _table(_LAYERS, "shape", "the same without dropping", results)


def _table(rows: Sequence[_OpRow], tensor: str, floor: str, results: Path) -> list[str]:
    header = [
        *("op", "p", tensor, "timed", "ours ms", "against the code that people use today"),
        *(f"against {floor}", "made by"),
    ]
    return markdown_table(header, [_op_cells(row, results) for row in rows])


def _op_cells(wanted: _OpRow, results: Path) -> list[str]:
    newest = max(results.glob(f"{wanted.file}-amd-*.json"), key=_date)
    result = next(
        found for found in read(newest)["results"] if wanted.which.items() <= _plain(found).items()
    )
    row = next(row for row in result["rows"] if (row["name"], row["p"]) == (OURS, wanted.p))
    shape = result.get("shape") or [result["elements"]]
    peer = floor = ""
    if wanted.peer is not None:
        peer = f"{_faster(row, wanted.peer[1], wanted.phase)} than {wanted.peer[0]}"
    if wanted.floor is not None:
        floor = f"{_times(row, wanted.floor[1], wanted.phase)} the time of {wanted.floor[0]}"
    return [
        wanted.op,
        "" if wanted.p is None else f"{wanted.p:g}",
        f"{' x '.join(map(str, shape))}, {result.get('dtype', 'float32')}",
        wanted.timed,
        three_digits(1e3 * row["seconds"][wanted.phase]["median"]),
        peer,
        floor,
        f"`bench/{wanted.file.replace('-', '_')}.py`",
    ]


def _calls(results: Path) -> list[str]:
    newest = max(results.glob("call-overhead-intel-*.json"), key=_date)
    header = [
        *("call", "ours us", "torch's or timm's us", "ratio without gradients"),
        "ratio with backward",
    ]
    rows = []
    for result in read(newest)["results"]:
        own, peer = result["rows"][:2]
        phase = "no_grad" if "no_grad" in result["phases"] else "forward"
        ratios = [own.get(f"{name}_times_peer") for name in (phase, "total")]
        times = [row["least_microseconds"][phase] for row in (own, peer)]
        rows.append(
            [
                result["form"],
                *(f"{time:.1f}" for time in times),
                *("" if ratio is None else f"{ratio:.1f}x" for ratio in ratios),
            ]
        )
    return markdown_table(header, rows)


def _plain(result: Result) -> dict[str, Any]:
    """What a result says of itself, without its rows."""
    return {key: value for key, value in result.items() if key != "rows"}


def _times(row: Row, figure: str, phase: str = "total") -> str:
    """How many times the other's time is ours; empty where it was not measured."""
    found = (row.get(figure) or {}).get(phase)
    return "" if found is None else f"{three_digits(found['median'], 2)}x"


def _faster(row: Row, figure: str, phase: str = "total") -> str:
    times = _times(row, figure, phase)
    return f"{times} faster" if times else ""
