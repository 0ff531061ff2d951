"""Start-up time of llmctl: time to one token compared with a plain transformers script, and loading a model in 4 bits.

    python benchmarks/start.py SMALL_MODEL --large FOLDER --runs 5

Every measurement runs in a new process, and the two programs take turns. `beyond imports` means that the process has
imported torch, transformers' classes of the model and llmctl before the clock starts. The first load quantises the
model and writes the quantised cache; the second load reads it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = "Name a colour."

PLAIN = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
messages = [{{"role": "user", "content": {PROMPT!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""

LOAD = """
import json, sys, time
from pathlib import Path
import torch, transformers, llmctl, llmctl.loading.loader, llmctl.quant.hf_quantizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[3]))
AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(sys.argv[1]))]
def memory(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0]) * 1024
began = time.perf_counter()
loaded = llmctl.load(sys.argv[1], quantization={"bits": int(sys.argv[2])})
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak": memory("VmHWM"), "held": memory("VmRSS"),
                  "quantization": loaded.measured.quantization}))
"""


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Run a command. Return its wall time, its CPU time and its output."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    wall, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used, done.stdout.strip()


def measure_cold_start(model: str, runs: int, environment: dict[str, str]) -> dict[str, Any]:
    """Measure the time to one token of both programs, in turns. The first run only fills the page cache."""
    llmctl = [sys.executable, "-m", "llmctl", "generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", "1"]
    commands = {"llmctl generate": llmctl, "plain script": [sys.executable, "-c", PLAIN, model]}
    results: dict[str, list[tuple[float, float, str]]] = {program: [] for program in commands}
    for _ in range(runs + 1):
        for program, command in commands.items():
            results[program].append(timed(command, environment))
    return {
        program: {
            "wall": statistics.median(wall for wall, _, _ in times[1:]),
            "processor": statistics.median(used for _, used, _ in times[1:]),
            "text": times[0][2],
        }
        for program, times in results.items()
    }


def measure_loads(model: str, bits: int, runs: int, threads: int, environment: dict[str, str]) -> dict[str, Any]:
    """Measure the first and the second load, `runs` times. The model's files are in the page cache."""
    for file in Path(model).glob("*.safetensors"):
        file.read_bytes()
    results: dict[str, list[dict[str, Any]]] = {"first": [], "second": []}
    command = [sys.executable, "-c", LOAD, model, str(bits), str(threads)]
    for _ in range(runs):
        shutil.rmtree(Path(environment["LLMCTL_HOME"]), ignore_errors=True)
        for measured in results.values():
            measured.append(json.loads(timed(command, environment)[2].splitlines()[-1]))
    return {
        load: {
            "seconds": statistics.median(run["seconds"] for run in measured),
            "peak": statistics.median(run["peak"] for run in measured),
            "held": statistics.median(run["held"] for run in measured),
            "peak over held": statistics.median(run["peak"] / run["held"] for run in measured),
            "quantization": measured[0]["quantization"],
        }
        for load, measured in results.items()
    }


def main() -> None:
    """Print the results as text, then as one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", help="folder of a model for the cold start")
    parser.add_argument("--large", help="folder of a model to load quantised")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"LLMCTL_HOME": str(Path(home) / "home"), "HF_HUB_OFFLINE": "1"}
        document: dict[str, Any] = {
            "runs": options.runs,
            "cold": measure_cold_start(options.small, options.runs, environment),
        }
        ours, plain = document["cold"].values()
        for program, result in document["cold"].items():
            wall, processor = result["wall"], result["processor"]
            print(f"{program:<16} wall {wall:5.2f} s  processor {processor:5.2f} s  {result['text']!r}")
        ratios = {name: ours[name] / plain[name] for name in ("wall", "processor")}
        print(f"ratio            wall {ratios['wall']:5.2f}    processor {ratios['processor']:5.2f}")
        if options.large:
            document["loads"] = measure_loads(options.large, options.bits, options.runs, options.threads, environment)
            for load, result in document["loads"].items():
                ratio, seconds = result["peak over held"], result["seconds"]
                memory = f"peak {result['peak'] / 1e9:.2f} GB, {ratio:.2f} times the memory held afterwards"
                print(f"{load + ' load':<16} {seconds:5.2f} s beyond imports  {memory}  {result['quantization']}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
