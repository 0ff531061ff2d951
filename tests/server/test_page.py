"""The page in a real browser (`make test-page`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.page import Scripted, answered, say
from tests.support.served import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser]
HOSTILE = """Look: <script>window.owned = 1</script> <img src=x onerror="window.owned = 2">

* [click](javascript:window.owned=3) and [data](data:text/html,hello) and [fine](https://example.com/a?b=c)
* ![a picture](https://example.com/spy.png)

```html
<script>window.owned = 4</script>
```

```python
@cached
def f(x): return "text" * 2  # a comment
```

```diff
-old
+new
```

| a | b |
| - | - |
| <b>x</b> | **bold** |

\u001b[31mred\u202ereversed"""


def test_a_conversation_continues_after_a_reload(page: "Page", tiny_models: Callable[[str], Path]) -> None:
    with served(str(tiny_models("llama")), "--set", "generation.max_new_tokens=20", OMP_NUM_THREADS="1") as address:
        page.goto(address)
        page.wait_for_function("() => document.getElementById('model').textContent !== 'llmctl'")
        say(page, "the capital of france")
        first = answered(page, 1)
        say(page, "and of italy")
        answered(page, 2)
        page.reload()
        assert page.locator(".assistant .prose").first.inner_text() == first
        assert page.locator(".message").count() == 4
        page.click("[aria-label='Another answer']")
        answered(page, 2)
        page.click("#export")
        with page.expect_download() as download:
            page.click("#exporting button[value=jsonl]")
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        from llmctl.generation.chat.transcript import SCHEMA

        assert json.loads(lines[0])["schema"] == SCHEMA
        assert [json.loads(line)["role"] for line in lines[1:]] == ["user", "assistant"] * 2


def test_an_exported_conversation_can_be_read_by_chat(
    page: "Page", scripted: tuple[Scripted, str], tmp_path: Path
) -> None:
    from llmctl.generation.chat.transcript import read

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


def test_escape_stops_an_answer_and_keeps_its_text(page: "Page", scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.says, script.wait_seconds, script.seed = ["word "] * 500, 0.02, 4711
    page.goto(address)
    say(page, "go on and on")
    page.wait_for_function("() => document.querySelector('.assistant .prose')?.textContent.includes('word word')")
    page.keyboard.press("Escape")
    text = answered(page, 1)
    assert 2 <= text.count("word") < 500
    assert "stopped" in page.inner_text(".assistant .figures")
    page.click("[aria-label=Details]")
    assert "4711" in page.inner_text(".details")
    page.reload()
    assert page.locator(".assistant .prose").inner_text() == text


def test_hostile_text_is_shown_and_has_no_effect(page: "Page", scripted: tuple[Scripted, str]) -> None:
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
    assert page.locator(".prose pre").first.inner_text() == "<script>window.owned = 4</script>"


def test_settings_and_the_system_prompt_are_sent(page: "Page", scripted: tuple[Scripted, str]) -> None:
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


def test_an_edited_message_replaces_the_old_one(page: "Page", scripted: tuple[Scripted, str]) -> None:
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


def test_conversations_are_separate_and_can_be_deleted(page: "Page", scripted: tuple[Scripted, str]) -> None:
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
    page.keyboard.press("Escape")
    assert page.locator(".conversations li").count() == 2
    page.locator("[aria-label='Delete: first talk']").click()
    page.click("#deleting button[value=delete]")
    page.wait_for_function("() => document.querySelectorAll('.conversations li').length === 1")
    assert page.locator(".user .text").inner_text() == "second talk"


def test_the_page_asks_for_a_key_and_uses_it(page: "Page", tiny_models: Callable[[str], Path]) -> None:
    key = "a-key-that-is-long-enough-to-be-one"
    with served(str(tiny_models("llama")), LLMCTL_API_KEY=key, OMP_NUM_THREADS="1") as address:
        page.goto(address)
        page.fill("#key-value", key)
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('model').textContent !== 'llmctl'")
        say(page, "hello")
        answered(page, 1)
        assert page.evaluate("JSON.stringify(localStorage)").find(key) == -1


def test_everything_works_by_keyboard(page: "Page", scripted: tuple[Scripted, str]) -> None:
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
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert {"new", "import", "search", "export", "theme", "settings-open", "attach", "prompt"} <= reached
    assert {"Copy", "Edit", "Another answer", "Details", "Rename: hello", "Delete: hello"} <= reached
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
    script.says, script.reasoning, script.seed = [HOSTILE], "Let me think.", 7
    script.logprobs = [{"token": "a", "logprob": -1.0, "top_logprobs": []}]
    script.defaults |= {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "max_tokens": 512}
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(address)
    responses = {"empty": axe.run(page).response}
    say(page, "hello")
    answered(page, 1)
    responses["answered"] = axe.run(page).response
    page.click("[aria-label='Another answer']")
    page.wait_for_selector(".version")
    page.click(".reasoning summary")
    page.click("[aria-label=Details]")
    file = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}
    page.set_input_files("#attach-files", files=[file, file | {"name": "wrong.bin", "buffer": b"\xff"}])
    page.wait_for_selector("#attached li")
    responses["details, an attached file and an error"] = axe.run(page).response
    say(page, "look at this")
    answered(page, 2)
    page.click(".attachment summary")
    responses["sent file"] = axe.run(page).response
    for dialog, opens in (("settings", "#settings-open"), ("exporting", "#export")):
        page.click(opens)
        responses[dialog] = axe.run(page).response
        page.keyboard.press("Escape")
    page.evaluate("document.getElementById('key').showModal()")  # opens by itself only if a key is required
    responses["key"] = axe.run(page).response
    page.keyboard.press("Escape")
    if width == 390:
        page.click("#drawer-open")
        page.wait_for_timeout(300)
        responses["drawer"] = axe.run(page).response
        page.click("[aria-label='Rename: hello']")
        responses["renaming"] = axe.run(page).response
        page.keyboard.press("Escape")
        page.fill("#search", "nothing has this")
        responses["search"] = axe.run(page).response
        page.fill("#search", "")
        page.click("[aria-label='Delete: hello']")
        responses["deleting"] = axe.run(page).response
        page.keyboard.press("Escape")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    problems = [
        (where, rule["id"], [node["html"] for node in rule["nodes"]])
        for where, response in responses.items()
        for rule in response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert problems == []
