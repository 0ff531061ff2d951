"""The launch of vLLM: its command, with llmctl's guard as middleware, and its environment."""

import os
from collections.abc import Mapping
from pathlib import Path

from llmctl.config import Config
from llmctl.errors import MachineError
from llmctl.server.security.guard import Rules
from llmctl.vllm.arguments import Target
from llmctl.vllm.detection import DetectedVllm
from llmctl.vllm.process import GRACE_SECONDS, Launch, new_log
from llmctl.vllm.rules import uses_ray
from llmctl.vllm.translate import Translation

_PLUGIN = Path(__file__).with_name("plugin")
_GUARD_VARIABLE = "LLMCTL_VLLM_GUARD"
OPEN_PATHS = frozenset({"/health"})


def make_launch(
    vllm: DetectedVllm,
    config: Config,
    translation: Translation,
    target: Target,
    rules: Rules,
    *,
    offline: bool = False,
) -> Launch:
    """Return the launch of `vllm` with a translated configuration.

    Args:
        vllm: The vLLM to start.
        config: The translated configuration.
        translation: The translation of `config`.
        target: The target of the translation.
        rules: The access rules of its server.
        offline: True to forbid network access.

    Raises:
        MachineError: vLLM's Python is too old for the guard, or Ray is missing.
    """
    _check_environment(vllm, config)
    return Launch(
        command=(*vllm.command(translation.arguments), "--middleware", "llmctl_guard.GuardMiddleware"),
        environment={
            **{name: os.environ.get(name, value) for name, value in translation.environment.items()},
            **_guard_environment(rules),
            **({"HF_HUB_OFFLINE": "1"} if offline or _all_files_are_local(config, target) else {}),
        },
        host=target.host,
        port=target.port,
        log=new_log(),
        grace_seconds=GRACE_SECONDS + (config.serve.drain_seconds if target.purpose == "serve" else 0),
    )


def _check_environment(vllm: DetectedVllm, config: Config) -> None:
    if vllm.python_version < (3, 11):
        version = ".".join(map(str, vllm.python_version))
        raise MachineError(
            f"the vLLM of {vllm.python} runs on Python {version}, but llmctl's guard inside it needs 3.11",
            hint="create its environment with a newer Python",
        )
    if uses_ray(config) and not vllm.has_ray:
        raise MachineError(
            f"the environment of {vllm.python} has no Ray, which starts vLLM on several machines",
            hint=f"on each machine: {vllm.python} -m pip install ray",
        )


def _guard_environment(rules: Rules) -> Mapping[str, str]:
    path = os.pathsep.join([str(_PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
    # An empty VLLM_API_KEY turns off vLLM's own check, so that only the guard controls access.
    return {_GUARD_VARIABLE: rules.to_json(), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "VLLM_API_KEY": ""}


def _all_files_are_local(config: Config, target: Target) -> bool:
    return target.model is not None and not uses_ray(config) and config.draft.id is None
