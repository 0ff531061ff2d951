"""Compare llmctl with transformers, bitsandbytes and llama.cpp on the same weights and prompts.

    python benchmarks/peers.py --llama-python PATH/bin/python       # a random Llama of 1.24 billion, five runs each
    python benchmarks/peers.py --model FOLDER --runs 3 --check      # your own Llama; also compare the generated tokens

Every run of every program is a new process. The programs take turns, so that other load on the machine affects all of
them. llama.cpp comes from the PyPI package llama-cpp-python, in a separate environment or in this one; without
--llama-python, it is not measured. Its GGUF files are converted from the same safetensors.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers_gguf import TYPES, write_gguf

import llmctl

CHILD = Path(__file__).with_name("peers_child.py")
WEIGHTS = ("16 bits", "8 bits", "4 bits")
_NEW_TOKENS, _PROMPTS = 24, (64, 256)


@dataclass(frozen=True)
class Peer:
    """A program and the format in which it stores the weights."""

    weights: str
    program: str
    storage: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.program} {self.storage}"


def peers(folder: Path, files: dict[str, Path]) -> list[Peer]:
    """Return the programs to compare, by the size of the weights; llama.cpp only if its files exist."""
    result = []
    variants = (
        (None, {"transformers": "bfloat16", "llmctl": "bfloat16"}, "F16"),
        (8, {"transformers": "bitsandbytes int8", "llmctl": "8-bit"}, "Q8_0"),
        (4, {"transformers": "bitsandbytes nf4", "llmctl": "4-bit"}, "Q4_0"),
    )
    for weights, (bits, storages, gguf) in zip(WEIGHTS, variants, strict=True):
        arguments = {"folder": str(folder), "dtype": "bfloat16", "bits": bits}
        result += [Peer(weights, program, storage, arguments) for program, storage in storages.items()]
        if gguf in files:
            result.append(Peer(weights, "llama.cpp", gguf, {"file": str(files[gguf])}))
    return result


def make_model(folder: Path) -> None:
    """Save a random Llama with the shape of Llama 3.2 1B: 1.24 billion parameters, 16 layers, tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(CHILD.parents[1] / "tests"))
    from support.tiny import write_tokenizer

    folder.mkdir(parents=True)
    write_tokenizer(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="1GB")


def run_once(peer: Peer, python: str, job: dict[str, Any], home: Path, *, child: Path = CHILD) -> dict[str, Any]:
    """Run one program once in a new process, with the script `child`. Return its measurements."""
    threads = str(job["threads"])
    done = subprocess.run(
        [python, str(child)],
        input=json.dumps({"program": peer.program, "arguments": peer.arguments, **job}),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads, "LLMCTL_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode != 0 or not done.stdout:
        raise SystemExit(f"{peer.name} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Create missing model files, run the programs in turns, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a Llama (default: create a random one)")
    parser.add_argument("--llama-python", help="Python interpreter that has llama-cpp-python")
    parser.add_argument("--folder", type=Path, help="folder to keep the model and GGUF files in (default: temporary)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--weights", nargs="+", default=WEIGHTS, choices=WEIGHTS, help="sizes to measure (default: all)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="first compare the greedy texts at full precision")
    parser.add_argument("--json", type=Path, help="file to write the measurements of every run to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.folder or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folder = (arguments.model or work / "llama-1b").absolute()
        if not folder.is_dir():
            make_model(folder)
        files = {}
        for weight_type in TYPES if arguments.llama_python else ():
            files[weight_type] = (work / f"{folder.name}-{weight_type}.gguf").absolute()
            if not files[weight_type].exists():
                write_gguf(folder, files[weight_type], weight_type)
        measured = [peer for peer in peers(folder, files) if peer.weights in arguments.weights]
        home = Path(temporary) / "home"
        if arguments.check:
            sys.stdout.write(compare_tokens(folder, files, arguments.llama_python, arguments.threads, home))
        job = make_job(folder, arguments.threads)
        loads = [os.getloadavg()[0]]
        rounds: list[dict[str, Any]] = []
        with suppress(KeyboardInterrupt):  # complete rounds are still reported
            while len(rounds) < arguments.runs:
                rounds.append(one_round(measured, arguments.llama_python, job, home))
                loads.append(os.getloadavg()[0])
                sys.stderr.write(f"{len(rounds)} of {arguments.runs}, load average {loads[-1]:.1f}\n")
    if not rounds:
        raise SystemExit("no round was completed")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine_text(), "load_average": loads, "rounds": rounds}))
    runs = {peer.name: [each[peer.name] for each in rounds] for peer in measured}
    sys.stdout.write(report(measured, runs, threads=arguments.threads, loads=loads))


def one_round(measured: Sequence[Peer], llama_python: str, job: dict[str, Any], home: Path) -> dict[str, Any]:
    """Run every program once. Return the measurements by program."""
    pythons = {"llama.cpp": llama_python}
    return {peer.name: run_once(peer, pythons.get(peer.program, sys.executable), job, home) for peer in measured}


def make_job(folder: Path, threads: int) -> dict[str, Any]:
    """Return prompts of random ids, the same for every program, and a prompt to warm up with."""
    size = min(json.loads((folder / "config.json").read_text())["vocab_size"], 128000)
    rng = random.Random(7)
    prompts = [[rng.randrange(3, size) for _ in range(length)] for length in (64, *_PROMPTS)]
    return {"threads": threads, "new_tokens": _NEW_TOKENS, "warm_up": prompts[0], "prompts": prompts[1:]}


def compare_tokens(folder: Path, files: dict[str, Path], llama_python: str, threads: int, home: Path) -> str:
    """Compare the greedy tokens of the programs for a real prompt; transformers and llmctl use float32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    job = {"threads": threads, "new_tokens": _NEW_TOKENS, "prompts": [tokenizer.encode("The capital of France is")]}
    full = {"folder": str(folder), "dtype": "float32", "bits": None}
    results = {
        name: run_once(Peer("", name, "", full), sys.executable, job, home) for name in ("transformers", "llmctl")
    }
    for weight_type, file in files.items():
        peer = Peer("", "llama.cpp", weight_type, {"file": str(file)})
        results[peer.name] = run_once(peer, llama_python, job, home)
    tokens = {name: figures["cells"][0]["tokens"] for name, figures in results.items()}
    lines = []
    for name, ids in tokens.items():
        same = sum(a == b for a, b in zip(ids, tokens["transformers"], strict=True))
        lines.append(f"{name:15} {same}/{len(ids)} tokens equal to those of transformers: {tokenizer.decode(ids)!r}")
    return "\n".join([*lines, ""])


def report(measured: Sequence[Peer], runs: dict[str, list[dict[str, Any]]], *, threads: int, loads: list[float]) -> str:
    """Return a Markdown table: medians, minimum and maximum, and the ratio to transformers with the same bits."""
    count = len(next(iter(runs.values())))
    heads = [f"prefill {length}" for length in _PROMPTS] + [f"decode {length}" for length in _PROMPTS]
    lines = [
        f"{machine_text()}; {threads} threads; median of {count} (minimum-maximum); load average {min(loads):.1f}-"
        f"{max(loads):.1f}; {versions_text()}",
        "",
        f"| weights | program | load s | {' | '.join(heads)} | peak | anonymous |",
        "| --- | --- | " + "--: | " * (len(heads) + 3),
    ]
    for peer in measured:
        baseline_runs = runs[next(p.name for p in measured if p.weights == peer.weights)]
        peer_runs = runs[peer.name]
        cells = [figure([run["load_seconds"] for run in peer_runs])]
        for phase in ("prefill", "decode"):
            for index in range(len(_PROMPTS)):
                rates, baseline = ([run["cells"][index][phase] for run in each] for each in (peer_runs, baseline_runs))
                cells.append(f"{figure(rates)} x{statistics.median(rates) / statistics.median(baseline):.2f}")
        cells += [f"{statistics.median(run[name] for run in peer_runs) / 1e9:.2f} GB" for name in ("VmHWM", "RssAnon")]
        lines.append(f"| {peer.weights} | {peer.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "x: ratio to transformers with the same bits", ""])


def figure(values: list[float]) -> str:
    """Return the median, and the minimum and maximum of several values."""
    spread = f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3g}{spread}"


def machine_text() -> str:
    """Return the processor's name, family, cores and instruction sets."""
    from llmctl.machine.detection import read_machine

    machine = read_machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    keys = ("model name", "cpu family", "model")
    matches = [re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in keys]
    name, family, model = (match[1] if match else "?" for match in matches)
    features = ", ".join(sorted(machine.cpu_features))
    return f"{name}, family {family}, model {model}, {machine.physical_cores} cores, {features}"


def versions_text() -> str:
    """Return the versions of the compared programs."""
    from importlib.metadata import version

    names = ("torch", "transformers", "bitsandbytes")
    return ", ".join(
        [f"llmctl {llmctl.__version__}", f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in names)]
    )


if __name__ == "__main__":
    main()
