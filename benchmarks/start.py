"""How soon llmctl is ready: one token from nothing beside the plain script, and a model in 4 bits, loaded twice.

    python benchmarks/start.py SMALL_MODEL --large FOLDER --runs 5

Every measurement is a process of its own, and the two programs take turns. `beyond imports`: the child has imported
torch, transformers' classes of the model and llmctl before the clock starts. The first load quantises and keeps a copy,
the second reads it.
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
    """Wall and processor seconds of a command, and what it printed."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    wall, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used, done.stdout.strip()


def cold(model: str, runs: int, environment: dict[str, str]) -> dict[str, Any]:
    """One token from nothing, both ways in turn; the first turn, which fills the system's cache, is not counted."""
    llmctl = [sys.executable, "-m", "llmctl", "generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", "1"]
    ways = {"llmctl generate": llmctl, "plain script": [sys.executable, "-c", PLAIN, model]}
    found: dict[str, list[tuple[float, float, str]]] = {way: [] for way in ways}
    for _ in range(runs + 1):
        for way, command in ways.items():
            found[way].append(timed(command, environment))
    return {
        way: {
            "wall": statistics.median(wall for wall, _, _ in times[1:]),
            "processor": statistics.median(used for _, used, _ in times[1:]),
            "text": times[0][2],
        }
        for way, times in found.items()
    }


def loads(model: str, bits: int, runs: int, threads: int, environment: dict[str, str]) -> dict[str, Any]:
    """The first load and the second, `runs` times; the model's files are read once before."""
    for file in Path(model).glob("*.safetensors"):
        file.read_bytes()
    found: dict[str, list[dict[str, Any]]] = {"first": [], "second": []}
    command = [sys.executable, "-c", LOAD, model, str(bits), str(threads)]
    for _ in range(runs):
        shutil.rmtree(Path(environment["LLMCTL_HOME"]), ignore_errors=True)
        for which in found.values():
            which.append(json.loads(timed(command, environment)[2].splitlines()[-1]))
    return {
        which: {
            "seconds": statistics.median(one["seconds"] for one in each),
            "peak": statistics.median(one["peak"] for one in each),
            "held": statistics.median(one["held"] for one in each),
            "peak over held": statistics.median(one["peak"] / one["held"] for one in each),
            "quantization": each[0]["quantization"],
        }
        for which, each in found.items()
    }


def main() -> None:
    """Print what was found, and one JSON document at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", help="the folder of a model for the cold start")
    parser.add_argument("--large", help="the folder of a model that is loaded quantised")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"LLMCTL_HOME": str(Path(home) / "home"), "HF_HUB_OFFLINE": "1"}
        document: dict[str, Any] = {"runs": asked.runs, "cold": cold(asked.small, asked.runs, environment)}
        ours, plain = document["cold"].values()
        for way, one in document["cold"].items():
            print(f"{way:<16} wall {one['wall']:5.2f} s  processor {one['processor']:5.2f} s  {one['text']!r}")
        ratios = {name: ours[name] / plain[name] for name in ("wall", "processor")}
        print(f"ratio            wall {ratios['wall']:5.2f}    processor {ratios['processor']:5.2f}")
        if asked.large:
            document["loads"] = loads(asked.large, asked.bits, asked.runs, asked.threads, environment)
            for which, one in document["loads"].items():
                memory = f"peak {one['peak'] / 1e9:.2f} GB, {one['peak over held']:.2f} of what is held afterwards"
                print(f"{which + ' load':<16} {one['seconds']:5.2f} s beyond imports  {memory}  {one['quantization']}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
