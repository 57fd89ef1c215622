"""The console script: help, errors, exit statuses, info."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.cli import main
from fused_dropout._tools.common import ArgumentError, mask_mode, output_file, positive_int


def exit_status(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fused-dropout {fused_dropout.__version__}"


def test_help_names_every_subcommand_and_imports_none_of_them() -> None:
    code = (
        "import sys, fused_dropout._tools.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'matplotlib', 'sklearn', 'fused_dropout._tools.verify'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Fused DropConnect and dropout masks for PyTorch." in done.stdout
    for name in ("info", "verify", "bench", "convert-check", "reproduce", "demo"):
        assert re.search(rf"^    {name}\s", done.stdout, re.MULTILINE)
    assert "imported: []" in done.stdout


def test_help_of_subcommands_loads_no_compiler_tools() -> None:
    commands = ("verify", "bench", "convert-check", "reproduce", "demo")
    code = (
        "import sys, fused_dropout._tools.cli as c\n"
        "heavy = {'torch.utils.cpp_extension', 'torch.utils.benchmark', 'torch._dynamo'}\n"
        f"for command in {commands}:\n"
        "    try: c.main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "    print(command, 'imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in commands:
        assert f"usage: fused-dropout {command}" in done.stdout
        assert f"{command} imported: []" in done.stdout
    assert done.stderr == ""


def test_python_m_runs_the_same_program() -> None:
    command = [sys.executable, "-m", "fused_dropout", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'nonsense'" in done.stderr


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "COMMAND"),
        (["nonsense"], "'nonsense'"),
        (["verify", "--threads", "0"], "--threads: must be an integer from 1 to 2^31 - 1, got '0'"),
        (["bench", "--threads", "99999999999"], "--threads: must be an integer from 1 to 2^31 - 1"),
        (["bench", "--repeats", "9" * 5000], "--repeats: must be an integer from 1 to 2^31 - 1"),
        (["verify", "--seed", "-1"], "--seed: must be an integer from 0 to 2^62 - 1, got '-1'"),
        (["verify", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["bench", "--shape", "1,2"], "--shape: must be three integers from 1 to 2^31 - 1, B,O,I"),
        (["bench", "--shape", "1,2,2147483648"], "got '1,2,2147483648'"),
        (["bench", "--shape", "1,99999999,99999999"], "--shape 1,99999999,99999999: operands"),
        (["bench", "--shape", "2,3,4", "--shape", "2147483647,1,2147483647"], "GiB in float32"),
        (["bench", "--shape", "4,0,4"], "got '4,0,4'"),
        (["bench", "-p", "1.5"], "-p: must be a number in [0, 1], got '1.5'"),
        (["bench", "-p", "nan"], "got 'nan'"),
        (["bench", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["bench", "--mask", "0"], "--mask: must be row, example, batch, or an integer from 1 to"),
        (["bench", "--mask", str(2**63)], "integer from 1 to 2^63 - 1, got '9223372036854775808'"),
        (["bench", "--repeats", "many"], "got 'many'"),
        (
            ["bench", "--json", "/nowhere/x.json"],
            "write --json /nowhere/x.json: No such file",
        ),
        (["bench", "--json", "/proc/x.json"], "cannot write --json /proc/x.json: No such file"),
        (["bench", "--json", "."], "cannot write --json .: Is a directory"),
        (["bench", "dropuot"], "unknown op 'dropuot'; there are alpha_dropout, "),
        (["bench", "dropout", "drop out"], "unknown op 'drop out'"),
        (["bench", "--sweep", "speed"], "--sweep: invalid choice: 'speed'"),
        (["bench", "--max-size", "0"], "--max-size: must be an integer from 1 to 2^31 - 1, got"),
        (["bench", "gaussian_noise", "--sweep", "p"], "gaussian_noise has no drop probability"),
        (["bench", "concrete_dropout", "-p", "0.5"], "-p: concrete_dropout has no drop prob"),
        (["bench", "masks_and_noise", "--sweep", "dtype"], "--sweep dtype: mask has one dtype"),
        (["bench", "mask", "--dtype", "fp16"], "--dtype: mask has float32, not float16"),
        (["bench", "dropout", "--shape", "1,2,3"], "--shape is for dropconnect alone, got dropout"),
        (["bench", "dropout", "--mask", "row"], "--mask is for dropconnect alone, got dropout"),
        (["bench", "--sweep", "threads", "--threads", "2"], "--threads makes no sense with"),
        (["bench", "--sweep", "dtype", "--dtype", "fp32"], "--dtype makes no sense with --sweep"),
        (["bench", "--sweep", "size", "--shape", "1,2,3"], "--shape makes no sense with --sweep"),
        (["bench", "--sweep", "p", *["--shape", "1,2,3"] * 2], "--sweep takes one --shape"),
        (["bench", "--sweep", "size", "-p", "0.1", "-p", "0.2"], "--sweep size takes one -p"),
        (["bench", "--plot", "/nowhere/x.png"], "write --plot /nowhere/x.png: No such file"),
        (["bench", "--compare", "/nowhere/x.json"], "cannot read --compare /nowhere/x.json: No"),
        (["bench", "--compare", "."], "cannot read --compare .: Is a directory"),
    ],
)
def test_bad_arguments_give_one_line_and_status_2(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


def test_integers_up_to_their_bounds() -> None:
    assert positive_int(str(2**31 - 1)) == 2**31 - 1
    assert mask_mode(str(2**63 - 1)) == 2**63 - 1


def test_an_output_file_is_opened_first_and_written_once(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with output_file("--out", path) as write:
        assert path.read_bytes() == b""
        write(b"long content")
    with output_file("--out", path) as write:
        assert path.read_bytes() == b"long content"
        write(b"short")
    assert path.read_bytes() == b"short"
    with output_file("--out", Path(os.devnull)) as write:
        write(b"lost")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_no_new_file_and_no_changed_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"before")
    for path in (new, old):
        with pytest.raises(error), output_file("--out", path):
            raise error
    assert old.read_bytes() == b"before"
    assert not new.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_option_and_path() -> None:
    with (
        pytest.raises(ArgumentError, match="cannot write --out /dev/full: No space left"),
        output_file("--out", Path("/dev/full")) as write,
    ):
        write(b"content")


def test_bad_forced_isa_is_a_bad_argument() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fused_dropout", "info"],
        env={**os.environ, "FUSED_DROPOUT_ISA": "mmx"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "FUSED_DROPOUT_ISA" in done.stderr
    assert "mmx" in done.stderr


def test_info_shows_build_and_run_time_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    build = extension.build_info()
    facts = (fused_dropout.__version__, build["torch"], build["compiler"], extension.current_isa())
    for fact in facts:
        assert fact in shown
    for name in ("torch now", "CUDA at build", "ISAs in the binary", "threads", "commit"):
        assert name in shown


def test_info_shows_the_isa_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    lowest = extension.available_isas()[-1]
    with extension.use_isa(lowest):
        assert main(["info"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "ISA in use" in line)
    assert lowest in line


def test_missing_extension_names_the_remedy() -> None:
    code = (
        "import sys\n"
        "sys.modules['fused_dropout._C'] = None\n"  # as if it had never been built
        "from fused_dropout._tools.cli import main\n"
        "for command in ('info', 'verify', 'bench'):\n"
        "    print(command, 'returns', main([command]))\n"
        "    print('after', command, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *said, rest = re.split("after .*", done.stderr)
    assert not rest.strip()
    for command, errors in zip(("info", "verify", "bench"), said, strict=True):
        assert f"{command} returns 1" in done.stdout
        assert "compiled extension is not built" in errors
        assert extension.REBUILD in errors
        assert "Traceback" not in errors
    of_info = done.stdout.partition("info returns")[0]
    assert fused_dropout.__version__ in of_info and "torch now" in of_info
