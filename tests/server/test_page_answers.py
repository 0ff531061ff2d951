"""Answers on the page: continued, in several versions, with details; the settings and the context meter."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.page import Scripted, answered, say
from tests.support.served import served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser]
Server = tuple[Scripted, str]
DEFAULTS = {"max_model_len": 100, "max_tokens": 512, "seed": None, "system": "Be kind."}
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}


def shown(page: "Page", text: str) -> None:
    """Wait until the last answer has this text."""
    page.wait_for_function(
        "text => [...document.querySelectorAll('.assistant .prose')].at(-1)?.innerText === text", arg=text
    )


def button(page: "Page", name: str) -> None:
    page.locator(f".assistant [aria-label='{name}']").last.click()


def test_a_cut_answer_is_continued_where_it_ends(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says, script.reasoning, script.finish, script.seed = ["One", " two "], "Let me think.", "length", 5
    page.goto(address)
    say(page, "count")
    answered(page, 1)
    assert "token limit reached" in page.inner_text(".assistant .figures")
    script.says, script.reasoning, script.finish, script.seed = ["three"], "", "stop", 6
    button(page, "Continue")
    shown(page, "One two three")
    answered(page, 1)
    assert script.bodies[-1]["messages"][-1] == {
        "role": "assistant",
        "content": "One two ",
        "reasoning_content": "Let me think.",
    }
    assert page.locator("[aria-label=Continue]").count() == 0
    assert page.inner_text(".assistant .figures").startswith("18 tokens")
    button(page, "Details")
    assert "5, 6" in page.inner_text(".details")
    page.reload()
    shown(page, "One two three")


def test_an_answer_that_cannot_be_continued_is_kept_as_it_was(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says, script.finish = ["One"], "length"
    page.goto(address)
    say(page, "count")
    answered(page, 1)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=401, json={"error": {"message": "no"}}))
    button(page, "Continue")
    page.wait_for_selector("#key[open]")
    page.keyboard.press("Escape")
    assert answered(page, 1) == "One"
    assert "token limit reached" in page.inner_text(".assistant .figures")
    assert page.locator("[aria-label=Continue]").count() == 1


def test_versions_of_an_answer_keep_what_followed_them(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    script.says = ["First."]
    say(page, "hello")
    shown(page, "First.")
    answered(page, 1)
    script.says = ["Second."]
    button(page, "Another answer")
    shown(page, "Second.")
    answered(page, 1)
    assert script.bodies[-1]["messages"] == [{"role": "user", "content": "hello"}]
    say(page, "go on")
    answered(page, 2)
    page.locator("[aria-label='Previous version']").focus()
    page.keyboard.press("Enter")
    shown(page, "First.")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Previous version"
    assert page.get_attribute("[aria-label='Previous version']", "aria-disabled") == "true"
    assert page.locator(".message").count() == 2
    page.reload()
    shown(page, "First.")
    say(page, "another way")
    answered(page, 2)
    assert [one["content"] for one in script.bodies[-1]["messages"]] == ["hello", "First.", "another way"]
    page.locator("[aria-label='Next version']").click()
    assert page.locator(".user .text").all_inner_texts() == ["hello", "go on"]
    page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Version 2 of 2')")


def test_a_new_version_that_fails_leaves_the_earlier_one(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    say(page, "hello")
    answered(page, 1)
    script.says, script.breaks_off = [], True
    button(page, "Another answer")
    page.wait_for_function("() => document.getElementById('problem').textContent")
    assert answered(page, 1) == "Hello."
    page.reload()
    shown(page, "Hello.")
    assert page.locator(".version").count() == 0
    script.says, script.breaks_off = ["Second."], False
    button(page, "Another answer")
    shown(page, "Second.")
    answered(page, 1)
    say(page, "go on")
    answered(page, 2)
    page.locator("[aria-label='Previous version']").click()
    script.says, script.breaks_off = [], True
    button(page, "Another answer")
    page.wait_for_function("() => document.getElementById('problem').textContent")
    assert answered(page, 1) == "Hello."
    page.locator("[aria-label='Next version']").click()
    assert page.locator(".user .text").all_inner_texts() == ["hello", "go on"]


def test_details_have_the_seed_and_the_probabilities_of_tokens(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.seed = 4711
    hostile = "<img src=x onerror=window.owned=1>\u202e"
    script.logprobs = [
        {"token": " Hi", "logprob": 0.0, "top_logprobs": [{"token": " Hi", "logprob": 0.0}]},
        {"token": hostile, "logprob": -1.0, "top_logprobs": [{"token": hostile, "logprob": -1.0}]},
    ]
    page.goto(address)
    page.click("#settings-open")
    page.check("#logprobs")
    page.click("#settings button[value=done]")
    say(page, "hello")
    answered(page, 1)
    assert (script.bodies[0]["logprobs"], script.bodies[0]["top_logprobs"]) == (True, 3)
    button(page, "Details")
    rows = page.locator(".logprobs tbody tr").all_inner_texts()
    assert [row.split("\t")[1:3] for row in rows] == [["100.0%", "0.000"], ["36.8%", "-1.000"]]
    assert "\u2426" in rows[1]
    assert page.locator(".logprobs img").count() == 0
    assert "onerror" not in page.evaluate("JSON.stringify(localStorage)")
    page.click("text=Use this seed")
    button(page, "Another answer")
    page.wait_for_function("() => document.querySelector('.version')")
    assert script.bodies[-1]["seed"] == 4711


def test_settings_show_the_servers_values_and_send_only_the_users(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.defaults = DEFAULTS | SAMPLING
    page.goto(address)
    page.wait_for_function("() => document.getElementById('top_k').placeholder === '20'")
    page.click("#settings-open")
    expected = {"temperature": "0.7", "top_p": "0.8", "min_p": "0", "max_tokens": "512", "system": "Be kind."}
    assert {name: page.get_attribute(f"#{name}", "placeholder") for name in expected} == expected
    page.fill("#top_k", "0")
    page.fill("#min_p", "0.05")
    page.fill("#top_p", "7")  # out of bounds
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.getElementById('top_p').value === ''")
    say(page, "hello")
    answered(page, 1)
    assert set(script.bodies[0]) == {"model", "messages", "stream", "stream_options", "top_k", "min_p"}
    assert (script.bodies[0]["top_k"], script.bodies[0]["min_p"]) == (0, 0.05)
    assert script.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]
    page.click("#settings-open")
    page.click("#settings-reset")
    page.click("#settings button[value=done]")
    button(page, "Another answer")
    page.wait_for_function("() => document.querySelector('.version')")
    assert not {"top_k", "min_p"} & set(script.bodies[-1])


def test_the_context_meter_follows_the_conversation(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    say(page, "hello")
    answered(page, 1)
    page.wait_for_function("() => document.getElementById('context-bar').value === 12")  # 3 tokens read, 9 generated
    assert script.counted == []  # the usage of the answer is enough
    assert "12 of 100" in (page.get_attribute("#context-bar", "aria-valuetext") or "")
    script.tokens = 95
    say(page, "more")
    answered(page, 2)
    page.wait_for_selector("#context.full")
    page.set_input_files("#attach-files", files=[{"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}])
    page.wait_for_function("() => document.getElementById('context-bar').value === 42")  # counted by the server
    assert "File: a.txt" in script.counted[-1]["messages"][-1]["content"]
    page.click("#new")
    page.click("[aria-label='Remove: a.txt']")
    page.wait_for_selector("#context", state="hidden")


def test_a_real_servers_answers_vary_are_repeated_by_their_seed_and_continued(
    page: "Page", tiny_models: Callable[[str], Path]
) -> None:
    settings = ["--set", "generation.max_new_tokens=12", "--set", "generation.temperature=1"]
    with served(str(tiny_models("llama")), *settings, OMP_NUM_THREADS="1") as address:
        page.goto(address)
        page.wait_for_function("() => document.getElementById('temperature').placeholder === '1'")
        page.click("#settings-open")
        page.check("#logprobs")
        page.click("#settings button[value=done]")
        say(page, "the capital of france")
        texts, seeds = [answered(page, 1)], [seed_of(page)]
        for number in (2, 3):
            another(page, number)
            texts.append(answered(page, 1))
            seeds.append(seed_of(page))
        assert len(set(seeds)) == len(set(texts)) == 3
        assert page.locator(".logprobs tbody tr").count() >= 1
        page.click("text=Use this seed")
        another(page, 4)
        assert (answered(page, 1), seed_of(page)) == (texts[-1], seeds[-1])
        assert page.is_visible("#context")
        if page.locator("[aria-label=Continue]").count():  # the model may have ended its answer
            button(page, "Continue")
            assert answered(page, 1).startswith(texts[-1].rstrip())
        before = page.evaluate("document.getElementById('context-bar').value")
        page.set_input_files("#attach-files", files=[{"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}])
        page.wait_for_function("n => document.getElementById('context-bar').value !== n", arg=before)


def another(page: "Page", number: int) -> None:
    button(page, "Another answer")
    page.wait_for_function("n => document.querySelector('.version')?.textContent === n", arg=f"{number} of {number}")


def seed_of(page: "Page") -> str:
    """Open the details of the answer, and return the seed in them."""
    button(page, "Details")
    return page.locator(".details dl div").last.locator("dd").inner_text().split()[0]
