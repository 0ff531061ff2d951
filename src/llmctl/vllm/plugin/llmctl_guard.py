"""llmctl's guard inside vLLM's server: its folder is on PYTHONPATH, and `--middleware llmctl_guard.Inside` names it.

vLLM's own API key leaves /invocations open, which generates text as /v1 does, and it looks at neither Host nor the size
of a body (vllm/entrypoints/serve/middleware/authenticate.py). vLLM's environment need not have llmctl installed: this
takes the one that it lies in, and of that only what guards.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

VARIABLE = "LLMCTL_VLLM_GUARD"

if TYPE_CHECKING:
    from llmctl.server.request_body import Receive
    from llmctl.server.security.guard import App, Scope, Send


def _find_llmctl() -> None:
    """Make the llmctl that this file belongs to the one that is imported."""
    package = Path(__file__).resolve().parents[2]
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
        from llmctl.server.security.guard import Guard, Rules

        self._guard = Guard(app, Rules.from_json(os.environ[VARIABLE]))

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        await self._guard(scope, receive, send)
