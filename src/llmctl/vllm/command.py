"""From a translation to what is started: the command with llmctl's guard in it, and its environment."""

import os
from collections.abc import Mapping
from pathlib import Path

from llmctl.config import Config
from llmctl.errors import MachineError
from llmctl.server.security.guard import Rules
from llmctl.vllm.arguments import Target
from llmctl.vllm.child import GRACE_SECONDS, Start, new_log
from llmctl.vllm.detection import Vllm
from llmctl.vllm.rules import is_spread
from llmctl.vllm.translate import Translation

_PLUGIN = Path(__file__).with_name("plugin")
_GUARD = "LLMCTL_VLLM_GUARD"
OPEN_PATHS = frozenset({"/health"})


def make_start(
    vllm: Vllm, config: Config, translation: Translation, target: Target, rules: Rules, *, offline: bool = False
) -> Start:
    """What starts `vllm` as `translation` says it.

    Args:
        vllm: Which one.
        config: What was translated.
        translation: The arguments.
        target: What they were made for.
        rules: Who comes in.
        offline: Whether it may not touch the network.

    Raises:
        MachineError: its Python is too old for the guard, or Ray is missing.
    """
    if vllm.python_version < (3, 11):
        older = ".".join(map(str, vllm.python_version))
        raise MachineError(
            f"the vLLM of {vllm.python} runs on Python {older}, llmctl's guard in it needs 3.11",
            hint="make its environment with a newer Python",
        )
    if is_spread(config) and not vllm.has_ray:
        raise MachineError(
            f"the environment of {vllm.python} has no Ray, which is to start vLLM on several machines",
            hint=f"on each machine: {vllm.python} -m pip install ray",
        )
    return Start(
        command=(*vllm.command(translation.arguments), "--middleware", "llmctl_guard.Inside"),
        environment={
            **{name: os.environ.get(name, value) for name, value in translation.environment.items()},
            **_environment(rules),
            **({"HF_HUB_OFFLINE": "1"} if offline or _is_all_here(config, target) else {}),
        },
        host=target.host,
        port=target.port,
        log=new_log(),
        grace_seconds=GRACE_SECONDS + (config.serve.drain_seconds if target.purpose == "serve" else 0),
    )


def _environment(rules: Rules) -> Mapping[str, str]:
    path = os.pathsep.join([str(_PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
    # an empty VLLM_API_KEY is none: the guard alone decides who comes in
    return {_GUARD: rules.to_json(), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "VLLM_API_KEY": ""}


def _is_all_here(config: Config, target: Target) -> bool:
    """Whether every file lies on this machine: then nothing is asked of the Hub."""
    return target.model is not None and not is_spread(config) and config.draft.id is None
