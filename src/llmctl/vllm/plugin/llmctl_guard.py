"""llmctl's guard as middleware for vLLM's server.

It is enabled by `--middleware llmctl_guard.GuardMiddleware`, with this folder on PYTHONPATH. vLLM's own API key does
not protect /invocations, which generates text as /v1 does, and vLLM checks neither Host nor the size of a body
(vllm/entrypoints/serve/middleware/authenticate.py). llmctl need not be installed in vLLM's environment: the guard is
imported from the llmctl that contains this file.
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


def _import_llmctl() -> None:
    package = Path(__file__).resolve().parents[2]
    spec = spec_from_file_location("llmctl", package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None  # noqa: S101 (the file exists)
    assert spec.loader is not None  # noqa: S101
    module = module_from_spec(spec)
    sys.modules["llmctl"] = module
    spec.loader.exec_module(module)


class GuardMiddleware:
    """The guard around vLLM's app. Its rules come from an environment variable, with hashes instead of keys."""

    def __init__(self, app: "App") -> None:
        if "llmctl" not in sys.modules:
            _import_llmctl()
        from llmctl.server.security.guard import Guard, Rules

        self._guard = Guard(app, Rules.from_json(os.environ[VARIABLE]))

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        await self._guard(scope, receive, send)
