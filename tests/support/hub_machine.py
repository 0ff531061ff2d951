"""A machine of its own for llmctl and the stand-in, and the models that the stand-in serves."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from llmctl.versions import release
from support import forkserver
from support.hub_standin import HubStandin

LLMCTL = str(Path(sys.executable).with_name("llmctl"))
HF = str(Path(sys.executable).with_name("hf"))


def write_safetensors(path: Path, sizes: dict[str, int], *, seed: int = 0) -> None:
    """A valid safetensors file of uint8 tensors with random content; `sizes` in bytes."""
    header, at = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = random.Random(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size in sizes.values():
            for begin in range(0, size, 1 << 22):
                file.write(content.randbytes(min(1 << 22, size - begin)))


def make_model(folder: Path, *, shards: int = 1, shard_bytes: int = 200_000, seed: int = 0) -> Path:
    """A folder that looks like a model to the Hub's client: weights, config, tokenizer; not one that can run."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "seed": seed}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "README.md").write_text("# A model\n")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", {"weight": shard_bytes}, seed=seed)
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        write_safetensors(folder / name, {f"weight{i}": shard_bytes}, seed=seed * 100 + i)
    weight_map = {f"weight{i}": name for i, name in enumerate(names)}
    index = {"metadata": {"total_size": shards * shard_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@dataclass
class Result:
    """What a child process did."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


@dataclass
class Machine:
    """A machine of its own: a home, a cache, an environment without any token, and the stand-in for a Hub."""

    home: Path
    hub: HubStandin
    more: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The cache of models."""
        return self.home / "hf" / "hub"

    @property
    def env(self) -> dict[str, str]:
        """The environment of its processes."""
        dropped = ("HF_", "HUGGING", "LLMCTL_", "TRANSFORMERS_OFFLINE")
        env = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and not k.lower().endswith("_proxy")}
        env |= {
            "HOME": str(self.home),
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hf"),
            "LLMCTL_HOME": str(self.home / "llmctl"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1",
        }
        return env | self.more

    def start(self, *arguments: str, program: str | None = None, stdin: int = subprocess.DEVNULL, **more: str) -> Any:
        """Start llmctl, or another program; its outputs are pipes."""
        env, cwd, pipe = self.env | more, self.home, subprocess.PIPE
        if program is None:
            return forkserver.start(*arguments, env=env, stdin=stdin, stdout=pipe, stderr=pipe, text=True, cwd=cwd)
        command = [program, *arguments]
        return subprocess.Popen(command, env=env, stdin=stdin, stdout=pipe, stderr=pipe, text=True, cwd=cwd)

    def run(self, *arguments: str, program: str | None = None, stdin: str = "", **more: str) -> Result:
        """Run llmctl, or another program, to its end.

        `hf` of huggingface_hub 1.x takes the second port of the stand-in, its CDN, for the Hub: such a test is skipped.
        """
        if program == HF and release(version("huggingface_hub")) < (2,):
            pytest.skip("hf of huggingface_hub 1.x does not tell the stand-in's ports apart")
        began = time.monotonic()
        process = self.start(*arguments, program=program, stdin=subprocess.PIPE, **more)
        try:
            out, err = process.communicate(stdin, timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Result(process.returncode, out, err, time.monotonic() - began)

    def repo(self, repo_id: str) -> Path:
        """The folder of a model in the cache."""
        return self.cache / ("models--" + repo_id.replace("/", "--"))

    def partials(self) -> list[Path]:
        """Everything in the cache that is neither a blob nor a name for one."""
        return [p for p in self.cache.rglob("*") if p.is_file() and ("incomplete" in p.name or ".tmp" in p.name)]

    def is_whole(self, repo_id: str) -> bool:
        """Whether the cache holds every served byte of what loading needs, and nothing that is half."""
        served = self.hub.repos[repo_id]
        folder = self.repo(repo_id) / "snapshots" / served.commit
        wanted = [name for name in served.files if name.endswith((".safetensors", ".json"))]
        same = all(
            (folder / n).is_file() and (folder / n).read_bytes() == served.files[n]["full"].read_bytes() for n in wanted
        )
        return same and not self.partials()

    def wait_for_bytes(self, count: int, *, seconds: float = 20) -> None:
        """Wait until the partials hold this many bytes together."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sizes = 0
            for path in self.partials():
                try:
                    sizes += path.stat().st_size
                except OSError:
                    continue
            if sizes >= count:
                return
            time.sleep(0.01)
        raise AssertionError(f"no {count} bytes arrived in {seconds} s")


def interrupt(process: "subprocess.Popen[str]", number: signal.Signals) -> Result:
    """Send a signal and wait for the end: no longer than the time-outs that the command itself has."""
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return Result(process.returncode, out, err, time.monotonic() - began)
