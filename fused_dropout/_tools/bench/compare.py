"""`--compare OLD.json`: which of our records are faster, slower or the same as in an older file.

The rule: what is compared is the ratio to the floor, which the same rounds measured, so that a
machine that is slower for a while changes nothing. A record is slower, or faster, if the median
ratio is more than 5 % away from the old one and the intervals from the 20th to the 80th percentile
of the rounds' ratios do not overlap. What looks slower is measured once more, and is slower if it
is so both times. Peers and floors are not judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fused_dropout._tools.bench.columns import three_digits
from fused_dropout._tools.bench.family import OURS_ROLE
from fused_dropout._tools.common import ArgumentError

if TYPE_CHECKING:
    from rich.console import Console

Record = Mapping[str, Any]
FASTER, SLOWER, SAME = "faster", "slower", "same"
NO_RATIO, ONLY_OLD, ONLY_NEW = "no ratio", "only in OLD", "only in this run"
JUDGED = (FASTER, SLOWER, SAME)
SHARE = 0.05  # that a median must be away from the old one
_NUMBER = (int, float)
_ABOUT: dict[str, Any] = {  # what tells records apart, and its types
    "op": str, "phase": (str, type(None)), "device": str, "shape": list, "memory_format": str,
    "options": dict, "dtype": str, "p": (*_NUMBER, type(None)), "threads": int, "isa": str,
}  # fmt: skip
_TYPES = {**_ABOUT, "role": str, "times_floor": (dict, type(None))}
_MACHINE = ("cpu", "gpu", "torch_isa")


@dataclass(frozen=True)
class Verdict:
    """What became of one record; a median is None where there is no ratio."""

    op: str
    about: str
    old: float | None
    new: float | None
    verdict: str


def read_document(path: Path) -> dict[str, Any]:
    """A file that `--json` wrote; ArgumentError where it is none."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ArgumentError(f"cannot read --compare {path}: {error.strerror}") from error
    except ValueError as error:
        raise ArgumentError(f"--compare {path}: is no JSON ({error})") from error
    found = document.get("records") if isinstance(document, dict) else None
    if not (isinstance(found, list) and found and all(map(_is_record, found))):
        raise ArgumentError(
            f"--compare {path}: has no records of a benchmark; expected a file that "
            "`fused-dropout bench --json` wrote"
        )
    return dict(document)


def _is_record(record: object) -> bool:
    if not isinstance(record, dict) or not record.keys() >= _TYPES.keys():
        return False
    if not all(isinstance(record[key], wanted) for key, wanted in _TYPES.items()):
        return False
    ratio = record["times_floor"]
    if ratio is None:
        return True
    numbers = [ratio.get(key) for key in ("median", "p20", "p80")]
    return all(isinstance(number, _NUMBER) and number > 0 for number in numbers)


def compare(old: Sequence[Record], new: Sequence[Record]) -> list[Verdict]:
    """A verdict for each of our records in either file, in the order of the new one."""
    before, now = _ours(old), _ours(new)
    verdicts = [
        Verdict(record["op"], _text(record), _median(before.get(key)), _median(record),
                _verdict(before[key], record) if key in before else ONLY_NEW)
        for key, record in now.items()
    ]  # fmt: skip
    gone = [record for key, record in before.items() if key not in now]
    return verdicts + [Verdict(r["op"], _text(r), _median(r), None, ONLY_OLD) for r in gone]


def confirmed(first: Sequence[Verdict], again: Sequence[Verdict]) -> list[Verdict]:
    """The first verdicts, but what is slower there only is the same."""
    second = {found.about: found for found in again if found.verdict in (SAME, FASTER)}
    return [
        replace(found, new=second[found.about].new, verdict=SAME)
        if found.verdict == SLOWER and found.about in second
        else found
        for found in first
    ]


def _ours(records: Sequence[Record]) -> dict[str, Record]:
    ours = [record for record in records if record["role"] == OURS_ROLE]
    return {json.dumps([record[key] for key in _ABOUT], sort_keys=True): record for record in ours}


def _median(record: Record | None) -> float | None:
    ratio = record and record["times_floor"]
    return ratio["median"] if ratio else None


def _verdict(old: Record, new: Record) -> str:
    before, now = old["times_floor"], new["times_floor"]
    if before is None or now is None:
        return NO_RATIO
    if now["p20"] > before["p80"] and now["median"] > (1 + SHARE) * before["median"]:
        return SLOWER
    if now["p80"] < before["p20"] and now["median"] < (1 - SHARE) * before["median"]:
        return FASTER
    return SAME


def _text(record: Record) -> str:
    facts = [
        record["op"], record["phase"] or "not measured", "x".join(map(str, record["shape"])),
        "" if record["memory_format"] == "contiguous" else record["memory_format"],
        *(f"{name}={value}" for name, value in record["options"].items()),
        record["dtype"], "" if record["p"] is None else f"p={record['p']:g}",
        f"{record['threads']}t", record["isa"] if record["device"] == "cpu" else record["device"],
    ]  # fmt: skip
    return " ".join(fact for fact in facts if fact)


def print_verdicts(verdicts: Sequence[Verdict], path: Path, console: Console) -> None:
    """A table, and how many there are of each verdict."""
    from rich.table import Table

    table = Table(title="Times the floor, against OLD")
    table.add_column("record")
    for heading in ("old", "now", "now / old"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    colours = {FASTER: "green", SLOWER: "red", ONLY_OLD: "yellow", NO_RATIO: "yellow"}
    for found in verdicts:
        cells = ["-" if value is None else three_digits(value) for value in (found.old, found.new)]
        change = f"{found.new / found.old:.2f}" if found.old and found.new else "-"
        table.add_row(found.about, *cells, change, found.verdict, style=colours.get(found.verdict))
    console.print(table)
    kinds = (SLOWER, FASTER, SAME, NO_RATIO, ONLY_OLD, ONLY_NEW)
    counts = [f"{sum(v.verdict == kind for v in verdicts)} {kind}" for kind in kinds]
    console.print(f"OLD is {path}. {', '.join(counts)}.", markup=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else than the code may explain a verdict: another machine, torch, or settings."""
    lines = []
    tables = (("device", _MACHINE), ("versions", ("torch",)), ("variables", new["variables"]))
    for table, keys in tables:
        before, now = old.get(table), new[table]
        before = before if isinstance(before, dict) else {}
        lines += [
            f"{key} was {before.get(key)} in OLD and is {now.get(key)} now"
            for key in keys
            if before.get(key) != now.get(key)
        ]
    return lines
