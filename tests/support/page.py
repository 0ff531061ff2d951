"""A scripted server for tests of the page, and functions that drive the page."""

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Scripted:
    """A server with scripted answers behind the real guard. Its state: the bodies of requests."""

    def __init__(self) -> None:
        self.says: list[str] = ["Hello."]
        self.reasoning = ""
        self.wait_seconds = 0.0
        self.breaks_off = False
        self.finish, self.seed, self.tokens, self.prompt_tokens = "stop", 0, 9, 3
        self.logprobs: list[dict[str, Any]] = []
        self.model = "org/scripted"
        self.inputs: list[str] | None = ["text", "image"]
        self.defaults: dict[str, Any] = {"max_model_len": 100}
        self.bodies: list[dict[str, Any]] = []
        self.counted: list[dict[str, Any]] = []

    def app(self) -> Any:
        from fastapi import FastAPI, Request
        from fastapi.responses import StreamingResponse

        from llmctl.server.routes import page
        from llmctl.server.security.guard import Guard, Rules

        app = FastAPI()
        page.add_routes(app)

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            inputs = {} if self.inputs is None else {"input_modalities": self.inputs}
            return {"data": [{"id": self.model, **inputs}]}

        @app.get("/defaults")
        async def defaults() -> dict[str, Any]:
            return self.defaults

        async def tokenize(request: Request) -> dict[str, Any]:
            self.counted.append(await request.json())
            return {"count": 42, "max_model_len": 100, "tokens": []}

        async def chat(request: Request) -> StreamingResponse:
            self.bodies.append(await request.json())

            async def events() -> Any:
                opening = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None, "seed": self.seed}
                yield _event({"choices": [opening]})
                deltas = [{"reasoning_content": self.reasoning}] if self.reasoning else []
                for delta in [*deltas, *({"content": piece} for piece in self.says)]:
                    yield _event({"choices": [{"delta": delta, "finish_reason": None}]})
                    await asyncio.sleep(self.wait_seconds)
                if self.breaks_off:
                    return
                last = {"delta": {}, "finish_reason": self.finish, "seed": self.seed}
                yield _event({"choices": [{**last, "logprobs": {"content": self.logprobs} if self.logprobs else None}]})
                usage = {"completion_tokens": self.tokens, "prompt_tokens": self.prompt_tokens}
                yield _event({"choices": [], "usage": usage})
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")

        app.add_api_route("/tokenize", tokenize, methods=["POST"], response_model=None)
        app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
        return Guard(app, Rules(hosts=frozenset({"127.0.0.1"}), open_paths=page.OPEN_PATHS))


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def say(page: "Page", text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: "Page", count: int) -> str:
    """Wait for `count` complete answers, and return the text of the last."""
    page.wait_for_function(
        "n => document.querySelectorAll('.assistant').length === n && document.getElementById('stop').hidden", arg=count
    )
    return page.locator(".assistant .prose").last.inner_text()
