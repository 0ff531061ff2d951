"""llmctl's guard inside vLLM's server: its folder is on PYTHONPATH, and `--middleware llmctl_guard.Inside` names it.

vLLM's own API key leaves /invocations open, which generates text as /v1 does, and it looks at neither Host nor the size
of a body (vllm/entrypoints/serve/middleware/authenticate.py). vLLM's environment need not have llmctl installed: this
takes the one that it lies in, and of that only what guards.
"""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

VARIABLE = "LLMCTL_VLLM_GUARD"

if TYPE_CHECKING:
    from llmctl.serving.bodies import Receive
    from llmctl.serving.guard import App, Scope, Send


def _find_llmctl() -> None:
    """Make the llmctl that this file belongs to the one that is imported."""
    package = Path(__file__).resolve().parents[3]
    spec = spec_from_file_location("llmctl", package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None  # noqa: S101 (the file is there)
    assert spec.loader is not None  # noqa: S101
    module = module_from_spec(spec)
    sys.modules["llmctl"] = module
    spec.loader.exec_module(module)


class Inside:
    """The guard around vLLM's app, by the rules in the environment: keys are there as their hashes alone."""

    def __init__(self, app: "App") -> None:
        if "llmctl" not in sys.modules:
            _find_llmctl()
        from llmctl.serving.guard import Guard, Rules
        from llmctl.serving.keys import Keys

        said = json.loads(os.environ[VARIABLE])
        digests = tuple(bytes.fromhex(digest) for digest in said["keys"])
        rules = Rules(
            hosts=tuple(said["hosts"]),
            origins=tuple(said["origins"]),
            keys=Keys(digests, "llmctl") if digests else None,
            open_paths=frozenset(said["open_paths"]),
            body_bytes=said["body_bytes"],
            body_seconds=said["body_seconds"],
            json_depth=said["json_depth"],
        )
        self._guard = Guard(app, rules)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        await self._guard(scope, receive, send)
