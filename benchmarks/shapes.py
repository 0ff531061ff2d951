"""Compare llmctl with its own modules, transformers and llama.cpp on random checkpoints in the shapes of recent models.

    python benchmarks/shapes.py                                      # every shape, without llama.cpp
    python benchmarks/shapes.py --only qwen3.5 lfm2 --llama-source DIR --llama-bench DIR/build/bin/llama-bench

`llmctl` is a compiled program. `modules` are those of transformers with llmctl's kernels for their linear layers, as
llmctl runs an architecture that has no program. llama.cpp's own converter and llama-quantize (beside llama-bench) make
its files. Every run is a new process, and the programs take turns. The files of a shape are deleted before those of the
next are made, unless they are kept in --folder; the largest shape takes 10 GB, and as much for llama.cpp.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from peers import CHILD, Peer, figure, machine_text, run_once, versions_text
from shapes_checkpoints import SHAPES, Shape, make_checkpoint

SHAPES_CHILD = Path(__file__).with_name("shapes_child.py")
CONVERTER = Path(__file__).with_name("shapes_gguf.py")
WEIGHTS = ("16 bits", "4 bits")
FIGURES = ("prefill", "decode", "batch")
_PROMPT, _NEW_TOKENS, _BATCH = 256, 24, 4
_UNKNOWN_ARCHITECTURE = 3  # exit status of the converter


def peers(folder: Path, files: dict[str, Path], weights: Sequence[str]) -> list[Peer]:
    """Return the programs to compare, by the size of the weights."""
    result = []
    for size in weights:
        bits = None if size == "16 bits" else 4
        arguments = {"folder": str(folder), "dtype": "bfloat16", "bits": bits}
        storage = "bfloat16" if bits is None else "4-bit"
        result += [Peer(size, program, storage, arguments) for program in ("modules", "llmctl")]
        if bits is None:
            result.append(Peer(size, "transformers", storage, arguments))
        if size in files:
            storage = "BF16" if bits is None else "Q4_0"
            result.append(Peer(size, "llama.cpp", storage, {"file": str(files[size])}))
    return result


def gguf_files(shape: Shape, folder: Path, source: Path, bench: Path, weights: Sequence[str]) -> dict[str, Path]:
    """Convert a checkpoint for llama.cpp. Return its files by the size of the weights, none if it lacks the shape."""
    full, small = folder.with_suffix(".bf16.gguf"), folder.with_suffix(".q4_0.gguf")
    if not full.exists():
        command = [sys.executable, str(CONVERTER), str(source), str(folder), str(full)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == _UNKNOWN_ARCHITECTURE:
            sys.stderr.write(f"{shape.name}: llama.cpp does not have this architecture\n")
            return {}
        if done.returncode != 0:
            sys.stderr.write(
                f"{shape.name}: llama.cpp's converter failed, so it is not measured:\n{done.stderr[-500:]}\n"
            )
            full.unlink(missing_ok=True)
            return {}
    if "4 bits" in weights and not small.exists():
        quantize = [str(bench.with_name("llama-quantize")), str(full), str(small), "Q4_0"]
        subprocess.run(quantize, capture_output=True, check=True)
    return {size: file for size, file in (("16 bits", full), ("4 bits", small)) if size in weights}


def run_peer(peer: Peer, bench: Path | None, threads: int, home: Path) -> dict[str, Any]:
    """Run a program once in a new process. Return tokens per second for each of FIGURES that it has."""
    if peer.program == "llama.cpp":
        return _llama_bench(str(bench), peer.arguments["file"], threads)
    job: dict[str, Any] = {"threads": threads, "new_tokens": _NEW_TOKENS}
    if peer.program == "transformers":
        prompt = [3 + n * 7 % 300 for n in range(_PROMPT)]
        job |= {"warm_up": prompt[:16], "prompts": [prompt]}
        cell = run_once(peer, sys.executable, job, home, child=CHILD)["cells"][0]
        return {"prefill": cell["prefill"], "decode": cell["decode"]}
    job |= {"prompt_tokens": _PROMPT, "batch": _BATCH}
    return run_once(peer, sys.executable, job, home, child=SHAPES_CHILD)


def _llama_bench(bench: str, file: str, threads: int) -> dict[str, Any]:
    """Measure the prompt, then new tokens after it."""
    tests = {
        "prefill": ["-p", str(_PROMPT), "-n", "0"],
        "decode": ["-p", "0", "-n", str(_NEW_TOKENS), "-d", str(_PROMPT)],
    }
    rates = {}
    for name, arguments in tests.items():
        command = [bench, "-m", file, "-t", str(threads), "-r", "1", "-o", "json", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:  # the other programs are measured all the same
            sys.stderr.write(f"llama-bench ended with {done.returncode}:\n{done.stderr[-2000:]}\n")
            return {}
        rates[name] = json.loads(done.stdout)[0]["avg_ts"]
    return rates


def measure(shape: Shape, measured: Sequence[Peer], arguments: argparse.Namespace, home: Path) -> list[dict[str, Any]]:
    """Run all programs in turns. Return the figures of every round, by program."""
    rounds: list[dict[str, Any]] = []
    with suppress(KeyboardInterrupt):  # complete rounds are still reported
        while len(rounds) < arguments.runs:
            rounds.append({p.name: run_peer(p, arguments.llama_bench, arguments.threads, home) for p in measured})
            sys.stderr.write(f"{shape.name}: {len(rounds)} of {arguments.runs}, load {os.getloadavg()[0]:.1f}\n")
    return rounds


def table_rows(shape: Shape, measured: Sequence[Peer], rounds: list[dict[str, Any]]) -> list[str]:
    """Return rows of the table: rates, and the median of the ratios to the modules in the same round."""
    rows = []
    for peer in measured:
        baseline = next(p.name for p in measured if p.weights == peer.weights)
        cells = []
        for name in FIGURES:
            rates = [each[peer.name].get(name) for each in rounds]
            if None in rates:
                cells.append("")
                continue
            ratios = [rate / each[baseline][name] for rate, each in zip(rates, rounds, strict=True)]
            cells.append(f"{figure(rates)} x{median(ratios):.2f}")
        rows.append(f"| {shape.name} | {peer.weights} | {peer.name} | {' | '.join(cells)} |")
    return rows


def measure_shape(key: str, arguments: argparse.Namespace, work: Path) -> tuple[list[str], dict[str, Any]]:
    """Make the files of a shape and measure it. Return rows of the table, and the figures."""
    shape, folder, home = SHAPES[key], work / key, work / "home"
    if not (folder / "config.json").exists():
        make_checkpoint(shape, folder)
    files = {}
    if arguments.llama_bench:
        files = gguf_files(shape, folder, arguments.llama_source, arguments.llama_bench, arguments.weights)
    measured = peers(folder, files, arguments.weights)
    rounds = measure(shape, measured, arguments, home)
    if not arguments.folder:
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return table_rows(shape, measured, rounds) if rounds else [], {"shape": shape.name, "rounds": rounds}


def main() -> None:
    """Measure the shapes one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE", help=", ".join(SHAPES)
    )
    parser.add_argument(
        "--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS, help="sizes to measure (default: both)"
    )
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench (default: llama.cpp is not measured)")
    parser.add_argument("--llama-source", type=Path, help="llama.cpp's source, which has the converter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="folder to keep the checkpoints and GGUF files in (default: temporary)"
    )
    parser.add_argument("--json", type=Path, help="file to write the measurements of every run to")
    arguments = parser.parse_args()
    if (arguments.llama_bench is None) != (arguments.llama_source is None):
        parser.error("--llama-bench and --llama-source belong together")
    rows, results = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.folder or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        for key in arguments.only:
            more, result = measure_shape(key, arguments, work)
            rows += more
            results.append(result)
            if arguments.json:
                machine = {"machine": machine_text(), "threads": arguments.threads, "shapes": results}
                arguments.json.write_text(json.dumps(machine, indent=1), encoding="utf-8")
    run = f"{arguments.threads} threads; median of {arguments.runs} (minimum-maximum)"
    columns = (f"prefill {_PROMPT}", "decode", f"decode, batch of {_BATCH}")
    lines = [
        f"{machine_text()}; {run}; {versions_text()}",
        "",
        f"| shape | weights | program | {' | '.join(columns)} |",
        "| --- | --- | --- |" + " --: |" * 3,
    ]
    sys.stdout.write("\n".join([*lines, *rows, "", "tokens per second; x: ratio to the modules", ""]))


if __name__ == "__main__":
    main()
