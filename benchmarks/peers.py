"""llmctl beside transformers, bitsandbytes and llama.cpp: the same weights, the same prompts, one run.

    python benchmarks/peers.py --llama-python PATH/bin/python       # a random Llama of 1.24 billion, five runs each
    python benchmarks/peers.py --model FOLDER --runs 3 --check      # a Llama of one's own, and whether they agree

Every run of every program is a process of its own; the programs take turns, so that a noisy minute hits all of them.
llama.cpp comes from the PyPI package llama-cpp-python, in an environment of its own or in this one; without
--llama-python it is left out. It gets the weights as GGUF, written here from the same safetensors.
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
    """A program and how it holds the weights."""

    weights: str
    program: str
    storage: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.program} {self.storage}"


def peers(folder: Path, files: dict[str, Path]) -> list[Peer]:
    """Who takes part, by the size of the weights; llama.cpp where its files are."""
    found = []
    kinds = (
        (None, {"transformers": "bfloat16", "llmctl": "bfloat16"}, "F16"),
        (8, {"transformers": "bitsandbytes int8", "llmctl": "8-bit"}, "Q8_0"),
        (4, {"transformers": "bitsandbytes nf4", "llmctl": "4-bit"}, "Q4_0"),
    )
    for weights, (bits, storages, gguf) in zip(WEIGHTS, kinds, strict=True):
        arguments = {"folder": str(folder), "dtype": "bfloat16", "bits": bits}
        found += [Peer(weights, program, storage, arguments) for program, storage in storages.items()]
        if gguf in files:
            found.append(Peer(weights, "llama.cpp", gguf, {"file": str(files[gguf])}))
    return found


def make_model(folder: Path) -> None:
    """A random Llama of 1.24 billion parameters, as Llama 3.2 1B has them: 16 layers, vocabulary 128256, tied."""
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


def ask(peer: Peer, python: str, job: dict[str, Any], home: Path) -> dict[str, Any]:
    """One run of one program in a fresh process."""
    threads = str(job["threads"])
    done = subprocess.run(
        [python, str(CHILD)],
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
    """Make what is missing, let the programs take turns, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="the folder of a Llama; by default a random one is made")
    parser.add_argument("--llama-python", help="the interpreter that has llama-cpp-python")
    parser.add_argument("--folder", type=Path, help="where GGUF files and the model go and stay; temporary by default")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--weights", nargs="+", default=WEIGHTS, choices=WEIGHTS, help="only these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="first compare the greedy texts of all at full precision")
    parser.add_argument("--json", type=Path, help="write every run's figures there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.folder or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folder = (arguments.model or work / "llama-1b").absolute()
        if not folder.is_dir():
            make_model(folder)
        files = {}
        for kind in TYPES if arguments.llama_python else ():
            files[kind] = (work / f"{folder.name}-{kind}.gguf").absolute()
            if not files[kind].exists():
                write_gguf(folder, files[kind], kind)
        found = [peer for peer in peers(folder, files) if peer.weights in arguments.weights]
        home = Path(temporary) / "home"
        if arguments.check:
            sys.stdout.write(check(folder, files, arguments.llama_python, arguments.threads, home))
        job = make_job(folder, arguments.threads)
        loads = [os.getloadavg()[0]]
        rounds: list[dict[str, Any]] = []
        with suppress(KeyboardInterrupt):  # what is whole by then is reported
            while len(rounds) < arguments.runs:
                rounds.append(one_round(found, arguments.llama_python, job, home))
                loads.append(os.getloadavg()[0])
                sys.stderr.write(f"{len(rounds)} of {arguments.runs}, load average {loads[-1]:.1f}\n")
    if not rounds:
        raise SystemExit("not one round was whole")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine_text(), "load_average": loads, "rounds": rounds}))
    runs = {peer.name: [each[peer.name] for each in rounds] for peer in found}
    sys.stdout.write(report(found, runs, threads=arguments.threads, loads=loads))


def one_round(found: Sequence[Peer], llama_python: str, job: dict[str, Any], home: Path) -> dict[str, Any]:
    """Every program once."""
    pythons = {"llama.cpp": llama_python}
    return {peer.name: ask(peer, pythons.get(peer.program, sys.executable), job, home) for peer in found}


def make_job(folder: Path, threads: int) -> dict[str, Any]:
    """Prompts of random ids, the same for everyone; another one to warm up."""
    size = min(json.loads((folder / "config.json").read_text())["vocab_size"], 128000)
    chance = random.Random(7)
    prompts = [[chance.randrange(3, size) for _ in range(length)] for length in (64, *_PROMPTS)]
    return {"threads": threads, "new_tokens": _NEW_TOKENS, "warm_up": prompts[0], "prompts": prompts[1:]}


def check(folder: Path, files: dict[str, Path], llama_python: str, threads: int, home: Path) -> str:
    """Whether the programs give the same greedy tokens for a real prompt, transformers and llmctl in float32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    job = {"threads": threads, "new_tokens": _NEW_TOKENS, "prompts": [tokenizer.encode("The capital of France is")]}
    full = {"folder": str(folder), "dtype": "float32", "bits": None}
    said = {name: ask(Peer("", name, "", full), sys.executable, job, home) for name in ("transformers", "llmctl")}
    for kind, file in files.items():
        peer = Peer("", "llama.cpp", kind, {"file": str(file)})
        said[peer.name] = ask(peer, llama_python, job, home)
    tokens = {name: figures["cells"][0]["tokens"] for name, figures in said.items()}
    lines = []
    for name, ids in tokens.items():
        same = sum(a == b for a, b in zip(ids, tokens["transformers"], strict=True))
        lines.append(f"{name:15} {same}/{len(ids)} tokens as transformers: {tokenizer.decode(ids)!r}")
    return "\n".join([*lines, ""])


def report(found: Sequence[Peer], runs: dict[str, list[dict[str, Any]]], *, threads: int, loads: list[float]) -> str:
    """The table, as Markdown: medians, least and most, and each program against transformers with the same bits."""
    count = len(next(iter(runs.values())))
    heads = [f"prefill {length}" for length in _PROMPTS] + [f"decode {length}" for length in _PROMPTS]
    lines = [
        f"{machine_text()}; {threads} threads; median of {count} (least-most); load average {min(loads):.1f}-"
        f"{max(loads):.1f}; {versions_text()}",
        "",
        f"| weights | program | load s | {' | '.join(heads)} | peak | anonymous |",
        "| --- | --- | " + "--: | " * (len(heads) + 3),
    ]
    for peer in found:
        base = runs[next(p.name for p in found if p.weights == peer.weights)]
        own = runs[peer.name]
        cells = [_figure([run["load_seconds"] for run in own])]
        for what in ("prefill", "decode"):
            for place in range(len(_PROMPTS)):
                mine, theirs = ([run["cells"][place][what] for run in each] for each in (own, base))
                cells.append(f"{_figure(mine)} x{statistics.median(mine) / statistics.median(theirs):.2f}")
        cells += [f"{statistics.median(run[name] for run in own) / 1e9:.2f} GB" for name in ("VmHWM", "RssAnon")]
        lines.append(f"| {peer.weights} | {peer.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "x: of transformers with the same bits", ""])


def _figure(values: list[float]) -> str:
    spread = f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3g}{spread}"


def machine_text() -> str:
    """The processor's family, its cores and its instruction sets."""
    from llmctl.machine.detection import read_machine

    machine = read_machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model")]
    name, family, model = (found[1] if found else "?" for found in names)
    features = ", ".join(sorted(machine.cpu_features))
    return f"{name}, family {family}, model {model}, {machine.physical_cores} cores, {features}"


def versions_text() -> str:
    """What was compared."""
    from importlib.metadata import version

    names = ("torch", "transformers", "bitsandbytes")
    return ", ".join(
        [f"llmctl {llmctl.__version__}", f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in names)]
    )


if __name__ == "__main__":
    main()
