"""The page when requests fail, and the focus, selection and scroll position of its user."""

from typing import TYPE_CHECKING

import pytest
from tests.support.page import Scripted, answered, say

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser]
FOCUSED = "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
Server = tuple[Scripted, str]


def begin(page: "Page", script: Scripted) -> None:
    """Start a long answer."""
    script.says, script.wait_seconds = ["word "] * 500, 0.02
    say(page, "go on and on")
    page.wait_for_function("() => document.querySelector('.assistant .prose')?.textContent.includes('word word')")


def test_an_answer_that_is_cut_off_shows_an_error_and_keeps_its_text(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.breaks_off = True
    page.goto(address)
    say(page, "hello")
    assert answered(page, 1) == "Hello."
    assert "stopped" in page.inner_text(".assistant .figures")
    assert "cut off" in page.inner_text("#problem")


def test_a_partial_answer_survives_a_reload(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    begin(page, script)
    page.reload()
    assert "word word" in answered(page, 1)
    assert "stopped" in page.inner_text(".assistant .figures")


def test_a_partial_answer_survives_another_conversation(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    begin(page, script)
    page.click("#new")
    page.click("text=go on and on")
    assert "word word" in answered(page, 1)


def test_an_error_says_that_a_new_conversation_cannot_be_stored(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.add_init_script("Storage.prototype.setItem = () => { throw new Error('full'); }")
    page.goto(address)
    say(page, "hello")
    assert answered(page, 1) == "Hello."
    assert page.inner_text("#problem")


def test_an_error_does_not_hide_the_end_of_the_conversation(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says = ["word\n\n" * 40]
    page.goto(address)
    say(page, "hello")
    answered(page, 1)
    page.route("**/v1/models", lambda route: route.fulfill(status=401, json={"error": {"message": "no"}}))
    page.reload()
    page.wait_for_selector("#key[open]")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.getElementById('problem').textContent")
    assert (
        page.evaluate("(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)(main)")
        < 2
    )


def test_the_speed_is_shown_unless_the_whole_answer_arrived_at_once(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says, script.wait_seconds = ["word "] * 10, 0.05
    page.goto(address)
    say(page, "slow")
    answered(page, 1)
    speed = float(page.inner_text("#speed").removesuffix(" tokens/s"))
    assert 0 < speed < 100
    script.says = ["Hello."]
    page.click("[aria-label='Another answer']")
    page.wait_for_function("() => document.querySelector('.assistant .prose').textContent === 'Hello.'")
    answered(page, 1)
    assert "9 tokens" in page.inner_text(".assistant .figures")
    assert "tokens/s" not in page.inner_text(".assistant .figures")
    assert page.inner_text("#speed") == ""


def test_an_empty_answer_has_no_speed_and_can_be_retried(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says = []
    page.goto(address)
    say(page, "hello")
    assert answered(page, 1) == ""
    assert page.inner_text(".assistant .figures") == "9 tokens"
    script.says = ["Here I am."]
    page.click("[aria-label='Another answer']")
    page.wait_for_function("() => document.querySelector('.assistant .prose').textContent === 'Here I am.'")


def test_the_key_dialog_can_be_closed_and_shows_the_error(page: "Page", scripted: Server) -> None:
    _, address = scripted
    codes = iter([None, "invalid_api_key"])
    page.route(
        "**/v1/models",
        lambda route: route.fulfill(status=401, json={"error": {"message": "no", "code": next(codes)}}),
    )
    page.goto(address)
    page.wait_for_selector("#key[open]")
    page.fill("#key-value", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('key-problem').textContent")
    page.keyboard.press("Escape")
    page.wait_for_timeout(100)
    assert not page.is_visible("#key")
    assert "API key" in page.inner_text("#problem")
    page.unroute("**/v1/models")
    say(page, "hello")  # fetches the model's name again
    assert answered(page, 1) == "Hello."


def test_the_focus_is_never_lost(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says, script.wait_seconds = ["word "] * 10, 0.01
    page.goto(address)
    page.fill("#prompt", "one")
    page.focus("#send")
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "prompt"
    page.focus("#stop")
    answered(page, 1)
    assert page.evaluate(FOCUSED) == "prompt"
    page.focus("[aria-label='Another answer']")
    page.keyboard.press("Enter")
    answered(page, 1)
    assert page.evaluate(FOCUSED) == "prompt"
    script.says, script.wait_seconds = ["word "] * 10, 0.05
    say(page, "two")
    page.locator(".assistant [aria-label=Copy]").first.focus()
    answered(page, 2)
    assert page.evaluate(FOCUSED) == "Copy"
    page.click("#new")
    say(page, "three")
    answered(page, 1)
    page.focus("[aria-label='Delete: one']")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.conversations li').length === 1")
    page.wait_for_timeout(50)
    assert page.evaluate("document.activeElement !== document.body")


def test_selection_and_open_reasoning_stay_while_an_answer_arrives(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.reasoning = "Let me think."
    script.says, script.wait_seconds = ["First paragraph.\n\n", *["word "] * 40], 0.02
    page.goto(address)
    say(page, "hello")
    page.wait_for_function("() => document.querySelector('.assistant .prose')?.textContent.includes('word')")
    page.click(".reasoning summary")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.prose p'))")
    page.wait_for_timeout(200)
    assert page.evaluate("getSelection().toString()").strip() == "First paragraph."
    answered(page, 1)
    assert page.evaluate("document.querySelector('.reasoning').open")


def test_an_answer_is_announced_to_screen_readers_once(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says, script.wait_seconds = ["word "] * 30, 0.01
    page.goto(address)
    page.evaluate(
        "window.announced = []; const region = document.getElementById('status');"
        "new MutationObserver(() => announced.push(region.textContent))"
        ".observe(region, {childList: true, characterData: true, subtree: true})"
    )
    say(page, "hello")
    answered(page, 1)
    page.wait_for_function("() => announced.length > 1")
    assert page.evaluate("announced") == ["Answering", "Answered: " + "word " * 30]
    assert page.locator("[aria-live], [role=log]").count() == 0


def test_a_message_can_be_copied_without_the_clipboard_api(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.goto(address)
    say(page, "hello")
    answered(page, 1)
    page.click(".assistant [aria-label=Copy]")
    page.wait_for_function("() => document.getElementById('status').textContent === 'Copied'")
    page.focus("#prompt")
    page.keyboard.press("Control+V")
    assert page.input_value("#prompt") == "Hello."


def test_elements_under_the_open_drawer_cannot_be_reached(browser: "Browser", scripted: Server) -> None:
    _, address = scripted
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.click("#drawer-open")
    assert page.evaluate(FOCUSED) == "drawer-close"
    assert page.evaluate("document.getElementById('app').inert")
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == "drawer-open"
    page.close()


@pytest.mark.parametrize("mark", ["`", "[", "__a", "**a ", "*a _b `c [d ", "~~a", "![", "> ", "http://,,", "|- "])
def test_no_text_makes_rendering_slow(page: "Page", scripted: Server, mark: str) -> None:
    _, address = scripted
    page.goto(address)
    milliseconds = page.evaluate(
        "async text => { const { render } = await import('./markdown.js'); const begun = performance.now();"
        " render(text); return performance.now() - begun; }",
        mark * (12_000 // len(mark)),
    )
    assert milliseconds < 2000
