"""Compare `llmctl download` with `hf download` on the same files over loopback: wall time and peak memory.

    python benchmarks/download.py                  # 1 GB in four shards, three runs each
    python benchmarks/download.py --megabytes 200  # faster

Each run starts with an empty cache. Xet is off, because the stand-in for the Hub serves plain HTTP, as mirrors do. The
two programs take turns, so that other load on the machine affects both. llmctl does more work: it hashes every byte,
and flushes every file to disk before it renames it to its final name.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.hub_standin import HubStandin  # noqa: E402 (the path is set just above)

BIN = Path(sys.executable).parent
PROGRAMS = {"llmctl": [str(BIN / "llmctl"), "download"], "hf": [str(BIN / "hf"), "download"]}


def make_model(folder: Path, *, megabytes: int, shards: int) -> None:
    """Write a model of random bytes; only the names, sizes and hashes of its files matter here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for name in names:
        with (folder / name).open("wb") as file:
            for _ in range(megabytes // shards):
                file.write(os.urandom(1_000_000))
    weight_map = {f"w{i}": name for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def run(command: list[str], *, url: str, home: Path) -> tuple[float, float]:
    """Download into an empty cache. Return the seconds and the peak memory in megabytes."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "LLMCTL_HOME": str(home / "llmctl")}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    env.pop("HF_TOKEN", None)
    began = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*command, "acme/model"], env=env, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            out.seek(0)
            raise SystemExit(f"{command[0]} failed:\n{out.read().decode(errors='replace')}")
    return seconds, usage.ru_maxrss / 1000


def main() -> None:
    """Create the model, run the programs in turns, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="parent of the temporary working folder (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        models, home = Path(work) / "models", Path(work) / "home"
        make_model(models / "acme" / "model", megabytes=arguments.megabytes, shards=arguments.shards)
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
        with HubStandin(models) as hub:
            for _ in range(arguments.runs):
                for name, command in PROGRAMS.items():
                    figures[name].append(run(command, url=hub.url, home=home))
    sys.stdout.write(report(figures, title=f"{arguments.megabytes} MB in {arguments.shards} shards"))


def report(figures: dict[str, list[tuple[float, float]]], *, title: str) -> str:
    """Return the measurements as a table."""
    lines = [
        f"{title}, {os.cpu_count()} cores",
        f"{'program':10}{'seconds (each run)':>28}{'median':>9}{'peak MB':>9}",
    ]
    for name, runs in figures.items():
        seconds = " ".join(f"{s:.2f}" for s, _ in runs)
        median, peak = statistics.median(s for s, _ in runs), max(m for _, m in runs)
        lines.append(f"{name:10}{seconds:>28}{median:>9.2f}{peak:>9.0f}")
    ours, theirs = (statistics.median(s for s, _ in figures[name]) for name in ("llmctl", "hf"))
    return "\n".join([*lines, f"llmctl takes {ours / theirs:.2f} times as long as hf download", ""])


if __name__ == "__main__":
    main()
