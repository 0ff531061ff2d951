"""The page in a real browser: `make test-page` installs what it needs and runs these."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.served import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: make test-page"),
    pytest.mark.xdist_group("browser"),
]
HOSTILE = """Look: <script>window.owned = 1</script> <img src=x onerror="window.owned = 2">

* [click](javascript:window.owned=3) and [data](data:text/html,hello) and [fine](https://example.com/a?b=c)
* ![a picture](https://example.com/spy.png)

```html
<script>window.owned = 4</script>
```

| a | b |
| - | - |
| <b>x</b> | **bold** |

\u001b[31mred\u202ereversed"""


class Scripted:
    """A server whose model says what it is told to, behind the real guard. Its state: what was asked."""

    def __init__(self) -> None:
        self.says: list[str] = ["Hello."]
        self.reasoning = ""
        self.wait_seconds = 0.0
        self.bodies: list[dict[str, Any]] = []

    def app(self) -> Any:
        from fastapi import FastAPI, Request
        from fastapi.responses import StreamingResponse

        from llmctl.serving.guard import Guard, Rules
        from llmctl.serving.page import PATHS, add_page

        app = FastAPI()
        add_page(app)

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": "org/scripted"}]}

        async def chat(request: Request) -> StreamingResponse:
            self.bodies.append(await request.json())

            async def events() -> Any:
                deltas = [{"reasoning_content": self.reasoning}] if self.reasoning else []
                for delta in [*deltas, *({"content": piece} for piece in self.says)]:
                    yield _event({"choices": [{"delta": delta, "finish_reason": None}]})
                    await asyncio.sleep(self.wait_seconds)
                yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
                yield _event({"choices": [], "usage": {"completion_tokens": 9, "prompt_tokens": 3}})
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")

        app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
        return Guard(app, Rules(hosts=frozenset({"127.0.0.1"}), open_paths=PATHS))


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with playwright.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A new browser's page. No error may show in its console, and nothing may leave its origin."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    one = context.new_page()
    wrong: list[str] = []
    own = ("http://127.0.0.1:", "blob:http://127.0.0.1:")
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("console", lambda said: wrong.append(said.text) if said.type == "error" and "401" not in said.text else None)
    one.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    one.set_default_timeout(15_000)
    yield one
    context.close()
    assert wrong == []


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    """A scripted server and its address."""
    import uvicorn

    script = Scripted()
    server = uvicorn.Server(uvicorn.Config(script.app(), port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield script, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def say(page: "Page", text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: "Page", count: int) -> str:
    """The text of the last answer once there are so many, and none is on its way."""
    page.wait_for_function(
        "n => document.querySelectorAll('.assistant').length === n && document.getElementById('stop').hidden", arg=count
    )
    return page.locator(".assistant .prose").last.inner_text()


def test_a_conversation_with_a_model_goes_on_after_a_reload(page: "Page", tiny_models: Callable[[str], Path]) -> None:
    with served(str(tiny_models("llama")), "--set", "generation.max_new_tokens=20", OMP_NUM_THREADS="1") as address:
        page.goto(address)
        page.wait_for_function("() => document.getElementById('model').textContent !== 'llmctl'")
        say(page, "the capital of france")
        first = answered(page, 1)
        say(page, "and of italy")
        answered(page, 2)
        assert "tokens/s" in page.inner_text("#speed")
        page.reload()
        assert page.locator(".assistant .prose").first.inner_text() == first
        assert page.locator(".message").count() == 4
        page.click("[aria-label='Another answer']")
        answered(page, 2)
        page.click("#export")
        with page.expect_download() as download:
            page.click("#exporting button[value=jsonl]")
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        from llmctl.generation.transcript import SCHEMA

        assert json.loads(lines[0])["schema"] == SCHEMA
        assert [json.loads(line)["role"] for line in lines[1:]] == ["user", "assistant"] * 2


def test_an_exported_conversation_can_be_read_by_chat(
    page: "Page", scripted: tuple[Scripted, str], tmp_path: Path
) -> None:
    from llmctl.generation.transcript import read

    script, address = scripted
    script.reasoning = "Let me think."
    page.goto(address)
    say(page, "hello")
    answered(page, 1)
    page.click("#export")
    with page.expect_download() as download:
        page.click("#exporting button[value=jsonl]")
    download.value.save_as(tmp_path / "kept.jsonl")
    transcript = read(tmp_path / "kept.jsonl")
    assert transcript.model == "org/scripted"
    assert [(m.role, m.content, m.reasoning) for m in transcript.messages] == [
        ("user", "hello", ""),
        ("assistant", "Hello.", "Let me think."),
    ]


def test_an_answer_is_stopped_by_escape_and_what_came_stays(page: "Page", scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.says, script.wait_seconds = ["word "] * 500, 0.02
    page.goto(address)
    say(page, "go on and on")
    page.wait_for_function("() => document.querySelector('.assistant .prose')?.textContent.includes('word word')")
    page.keyboard.press("Escape")
    text = answered(page, 1)
    assert 2 <= text.count("word") < 500
    assert "stopped" in page.inner_text(".assistant .figures")
    page.reload()
    assert page.locator(".assistant .prose").inner_text() == text


def test_what_a_model_writes_is_shown_and_does_nothing(page: "Page", scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.says = [HOSTILE[at : at + 7] for at in range(0, len(HOSTILE), 7)]
    page.goto(address)
    say(page, "<img src=x onerror=window.owned=5>")
    text = answered(page, 1)
    assert "<script>window.owned = 1</script>" in text
    assert "\u241b[31mred\u2426reversed" in text
    assert page.evaluate("window.owned") is None
    assert page.locator(".prose img, .prose script, .text img").count() == 0
    assert page.eval_on_selector_all(".prose a", "links => links.map(a => a.href)") == ["https://example.com/a?b=c"]
    assert page.locator(".prose td strong").inner_text() == "bold"
    assert page.locator(".prose pre").inner_text() == "<script>window.owned = 4</script>"


def test_settings_and_the_system_prompt_go_to_the_server(page: "Page", scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    page.goto(address)
    page.click("#settings-open")
    page.fill("#system", "Answer in verse.")
    page.fill("#temperature", "0.4")
    page.fill("#seed", "7")
    page.click("#settings button[value=done]")
    say(page, "hello")
    answered(page, 1)
    assert script.bodies[0]["messages"] == [
        {"role": "system", "content": "Answer in verse."},
        {"role": "user", "content": "hello"},
    ]
    assert (script.bodies[0]["temperature"], script.bodies[0]["seed"]) == (0.4, 7)
    assert "top_p" not in script.bodies[0]


def test_a_message_is_written_anew_in_its_place(page: "Page", scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    page.goto(address)
    for text in ("one", "two"):
        say(page, text)
        answered(page, 1 + (text == "two"))
    page.locator("[aria-label=Edit]").click()
    assert page.input_value("#prompt") == "two"
    say(page, "three")
    answered(page, 2)
    assert [message["content"] for message in script.bodies[-1]["messages"]] == ["one", "Hello.", "three"]


def test_conversations_are_kept_apart_and_can_be_deleted(page: "Page", scripted: tuple[Scripted, str]) -> None:
    _, address = scripted
    page.goto(address)
    for number, text in enumerate(("first talk", "second talk")):
        if number:
            page.click("#new")
        say(page, text)
        answered(page, 1)
    page.click("text=first talk")
    assert page.locator(".user .text").inner_text() == "first talk"
    page.locator("[aria-label='Delete: first talk']").click()
    assert page.locator(".user .text").inner_text() == "second talk"
    assert page.locator(".conversations li").count() == 1


def test_a_key_is_asked_for_and_used(page: "Page", tiny_models: Callable[[str], Path]) -> None:
    key = "a-key-that-is-long-enough-to-be-one"
    with served(str(tiny_models("llama")), LLMCTL_API_KEY=key, OMP_NUM_THREADS="1") as address:
        page.goto(address)
        page.fill("#key-value", key)
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('model').textContent !== 'llmctl'")
        say(page, "hello")
        answered(page, 1)
        assert page.evaluate("JSON.stringify(localStorage)").find(key) == -1


def test_everything_can_be_done_by_keyboard(page: "Page", scripted: tuple[Scripted, str]) -> None:
    _, address = scripted
    page.goto(address)
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("you")
    page.keyboard.press("Enter")
    answered(page, 1)
    assert page.locator(".user .text").inner_text() == "hello\nyou"
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert {"new", "export", "theme", "settings-open", "Copy", "Edit", "Another answer", "prompt"} <= reached
    page.focus("#settings-open")
    page.keyboard.press("Enter")
    assert page.locator("#settings").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#settings").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_problem(
    browser: "Browser", scripted: tuple[Scripted, str], width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-page installs it").Axe()
    script, address = scripted
    script.says, script.reasoning = [HOSTILE], "Let me think."
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(address)
    found = {"empty": axe.run(page).response}
    say(page, "hello")
    answered(page, 1)
    found["answered"] = axe.run(page).response
    page.click("#settings-open")
    found["settings"] = axe.run(page).response
    page.keyboard.press("Escape")
    if width == 390:
        page.click("#drawer-open")
        page.wait_for_timeout(300)
        found["drawer"] = axe.run(page).response
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    problems = [
        (where, rule["id"], [node["html"] for node in rule["nodes"]])
        for where, response in found.items()
        for rule in response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert problems == []
