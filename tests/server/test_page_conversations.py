"""Conversations on the page: imported, renamed and found; attached files; highlighted code and tables."""

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.page import Scripted, answered, say

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser]
Server = tuple[Scripted, str]
HEADER = {"schema": "llmctl.chat/1", "model": "org/m", "commit": None, "system": "Be brief."}


def lines(*records: Any) -> bytes:
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def choose(page: "Page", field: str, *files: tuple[str, bytes]) -> None:
    page.set_input_files(field, files=[{"name": name, "mimeType": "", "buffer": data} for name, data in files])


def test_an_exported_conversation_can_be_imported_again(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    user = {"role": "user", "content": "<b>hello</b>", "unknown": 1}
    assistant = {"role": "assistant", "content": "Hi <i>there", "reasoning": "Hm.", "stopped": True, "before": [{}]}
    choose(page, "#import-file", ("kept.jsonl", lines(HEADER, user, assistant)))
    assert answered(page, 1) == "Hi <i>there"
    assert page.inner_text(".user .text") == "<b>hello</b>"
    assert "stopped" in page.inner_text(".assistant .figures")
    page.wait_for_function("() => document.getElementById('context-bar').value === 42")  # counted by the server
    page.click("[aria-label=Details]")
    assert "Nothing is known" in page.inner_text(".details")
    page.reload()
    assert page.input_value("#system") == "Be brief."
    page.click("#export")
    with page.expect_download() as download:
        page.click("#exporting button[value=jsonl]")
    exported = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert exported[0] == HEADER | {"model": "org/scripted"}
    kept = ("role", "content", "reasoning", "stopped")
    assert exported[1:] == [{key: one[key] for key in kept if key in one} for one in (user, assistant)]
    say(page, "go on")
    answered(page, 2)
    assert script.bodies[-1]["messages"][0] == {"role": "system", "content": "Be brief."}


WRONG = {
    "not JSON Lines": (b"# Conversation with a model\n", "line 1"),
    "another schema": (lines({"schema": "other/1"}, {"role": "user", "content": "x"}), "not an exported"),
    "no messages": (lines(HEADER), "no messages"),
    "a role": (lines(HEADER, {"role": "system", "content": "x"}), "line 2"),
    "a content": (lines(HEADER, {"role": "user", "content": ["x"]}), "line 2"),
    "a reasoning": (lines(HEADER, {"role": "assistant", "content": "x", "reasoning": {}}), "line 2"),
    "an image": (lines(HEADER, {"role": "user", "content": "x", "media": [{"sha256": "0"}]}), "image"),
    "a system prompt": (lines(HEADER | {"system": 3}, {"role": "user", "content": "x"}), "line 1"),
    "a list": (lines(HEADER, ["user", "x"]), "line 2"),
    "a size": (b" " * 4_000_001, "4 MB"),
}


def test_a_file_that_is_not_a_conversation_is_refused_with_its_line(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.goto(address)
    say(page, "hello")
    answered(page, 1)
    for number, (content, reason) in enumerate(WRONG.values()):
        choose(page, "#import-file", (f"file{number}.jsonl", content))
        page.wait_for_function("n => document.getElementById('problem').textContent.includes(n)", arg=f"file{number}")
        assert reason in page.inner_text("#problem")
    assert page.locator(".conversations li").count() == 1
    assert page.inner_text(".user .text") == "hello"


def test_a_conversation_is_renamed_and_found(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    for number, text in enumerate(("apples", "pears", "plums")):
        if number:
            page.click("#new")
        script.says = [f"About {text.upper()}."]
        say(page, text)
        answered(page, 1)
    page.focus("[aria-label='Rename: pears']")
    page.keyboard.press("Enter")
    assert page.input_value("#rename-value") == "pears"
    page.keyboard.type("<b>Fruit</b>")  # the old title is selected
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-label='Rename: <b>Fruit</b>']")
    assert "Rename: <b>Fruit</b>" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.click(".conversations .open >> text=Fruit")
    script.says = ["Sure."]
    say(page, "more")
    answered(page, 2)
    page.reload()
    assert page.title().startswith("<b>Fruit</b>")
    for wanted, found in (
        ("about pears", ["<b>Fruit</b>"]),
        ("FRUIT", ["<b>Fruit</b>"]),
        ("kiwi", []),
        ("PL", ["plums", "apples"]),
    ):
        page.fill("#search", wanted)
        assert page.locator(".conversations .open").all_inner_texts() == found
        assert page.is_visible("#no-match") == (not found)
    page.focus("#search")
    page.keyboard.press("Escape")
    assert page.locator(".conversations li").count() == 3
    page.locator("[aria-label='Rename: plums']").click()
    page.keyboard.press("Escape")
    assert "plums" in page.inner_text("#conversations")


def test_attached_files_are_sent_as_text(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    page.wait_for_function("() => document.getElementById('model').textContent !== 'llmctl'")
    choose(page, "#attach-files", ("a.md", b"# Title\r\n```\ncode\n```\n"), ("b <i>.txt", "größe".encode()))
    page.wait_for_selector("#attached li >> nth=1")
    choose(page, "#attach-files", ("c.txt", b"third"))
    page.click("[aria-label='Remove: c.txt']")
    say(page, "summarise")
    answered(page, 1)
    assert script.bodies[0]["messages"][0]["content"] == (
        "summarise\n\nFile: a.md\n````\n# Title\n```\ncode\n```\n````\n\nFile: b <i>.txt\n```\ngröße\n```"
    )
    assert page.inner_text(".user .text") == "summarise"
    assert page.locator("#attached li").count() == 0
    page.reload()
    page.click(".attachment summary >> text=b <i>.txt")
    assert page.inner_text(".attachment pre") == "größe"
    page.locator("[aria-label=Edit]").click()
    assert page.locator("#attached li").count() == 2
    page.click("[aria-label='Remove: a.md']")
    page.fill("#prompt", "")
    page.click("#send")  # files alone are a message
    answered(page, 1)
    assert script.bodies[-1]["messages"][0]["content"] == "File: b <i>.txt\n```\ngröße\n```"


def test_files_are_attached_by_dropping_them(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.goto(address)
    page.evaluate(
        "for (const type of ['dragover', 'drop']) {"
        " const data = new DataTransfer(); data.items.add(new File(['text'], 'dropped.txt'));"
        " const event = new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true });"
        " if (document.getElementById('main').dispatchEvent(event)) throw new Error('not handled'); }"
    )
    page.wait_for_selector("[aria-label='Remove: dropped.txt']")


def test_files_that_cannot_be_attached_are_named(page: "Page", scripted: Server) -> None:
    script, address = scripted
    page.goto(address)
    wrong = [
        ("big.txt", b"a" * 256_001),
        ("image.png", b"\x89PNG\xff\x00"),
        ("nul.txt", b"a\x00b"),
        ("empty.txt", b" "),
    ]
    choose(page, "#attach-files", *wrong, ("fine.txt", b"fine"))
    page.wait_for_selector("#attached li")
    assert page.locator("#attached li").count() == 1
    assert all(name in page.inner_text("#problem") for name, _ in wrong)
    choose(page, "#attach-files", *((f"{number}.txt", b"a" * 250_000) for number in range(4)))
    page.wait_for_function("() => document.querySelectorAll('#attached li').length === 4")
    assert "1.0 MB" in page.inner_text("#problem")
    assert script.bodies == []


CODE = """```python
def f(x):  # a comment with "quotes"
    return "text # not a comment" + str(0x1f)
```

```html
<script>window.owned = 6</script><!-- <img src=x onerror=window.owned=7> -->
```

```unknown
plain "text" 1
```"""


def test_code_is_coloured_and_stays_text(page: "Page", scripted: Server) -> None:
    script, address = scripted
    script.says = [CODE[at : at + 5] for at in range(0, len(CODE), 5)]
    page.goto(address)
    say(page, "code")
    answered(page, 1)
    blocks = page.locator(".code code")
    parts = blocks.nth(0).evaluate("code => [...code.children].map(one => [one.className, one.textContent])")
    assert parts == [
        ["code-keyword", "def"],
        ["code-name", "f"],
        ["code-comment", '# a comment with "quotes"'],
        ["code-keyword", "return"],
        ["code-string", '"text # not a comment"'],
        ["code-name", "str"],
        ["code-number", "0x1f"],
    ]
    assert blocks.nth(1).inner_text() == CODE.split("```html\n")[1].split("\n```")[0]
    assert page.locator(".code code *:not(span)").count() == 0
    assert blocks.nth(2).evaluate("code => code.children.length") == 0
    assert page.evaluate("window.owned") is None


COLOURED = {
    "json": (
        '{"key": "text", "n": -1.5e3, "b": true}',
        'name:"key" string:"text" name:"n" number:1.5e3 name:"b" keyword:true',
    ),
    "ts": ("const s: Set = new Map(`a${b}`); // x", "keyword:const keyword:new name:Map string:`a${b}` comment:// x"),
    "rust": ("fn f<'a>(x: &'a str) -> char { 'x' }", "keyword:fn string:'x'"),
    "cpp": ("/* a\n b */ return f('\\n', 0xff);", "comment:/* a\n b */ keyword:return name:f string:'\\n' number:0xff"),
    "go": ("func main() { s := `raw` }", "keyword:func name:main string:`raw`"),
    "bash": ('if [ "$#" -gt 0 ]; then # it\'s', 'keyword:if string:"$#" number:0 keyword:then comment:# it\'s'),
    "sql": ("SELECT count(*) FROM t -- all", "keyword:SELECT keyword:count keyword:FROM comment:-- all"),
    "yaml": ("key: it's true # yes", "name:key keyword:true comment:# yes"),
    "css": ("a { color: red } /* x */", "name:color comment:/* x */"),
    "html": ('<a href="x">&amp;</a>', 'keyword:<a string:"x" keyword:> number:&amp; keyword:</a keyword:>'),
    "diff": ("-a\n+b\n c", "removed:-a\n string:+b\n"),
    "brainfuck": ("if + 1", ""),
}


def test_languages_are_coloured_by_their_own_rules(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.goto(address)
    for language, (code, expected) in COLOURED.items():
        parts = page.evaluate(
            """async ([code, language]) => (await import("./highlight.js")).highlight(code, language)
                .filter((node) => node.className).map((node) => `${node.className.slice(5)}:${node.textContent}`)""",
            [code, language],
        )
        assert (language, " ".join(parts)) == (language, expected)


def test_no_code_makes_highlighting_slow_or_loses_text(page: "Page", scripted: Server) -> None:
    _, address = scripted
    page.goto(address)
    marks = ['"', "'", "`", "/*", "<!--", '"""', "\\", "#", "--", "a:", "0x", "1e", "@a(", "<", "&a", "-->"]
    slow, changed = page.evaluate(
        """async marks => {
            const { highlight } = await import("./highlight.js");
            const slow = [], changed = [];
            for (const language of "python js c go rust bash sql yaml rb lua css html diff".split(" ")) {
                for (const mark of marks) {
                    const code = mark.repeat(30000 / mark.length), begun = performance.now();
                    const text = highlight(code, language).map((node) => node.textContent).join("");
                    if (performance.now() - begun > 1000) slow.push([language, mark]);
                    if (text !== code) changed.push([language, mark]);
                }
            }
            return [slow, changed];
        }""",
        marks,
    )
    assert (slow, changed) == ([], [])


TABLE = """| Name | Count | Note |
| :-- | --: | :-: |
| incomprehensibilities | 1 | a long sentence about a row that has to wrap somewhere on a narrow screen |
| x | 22 |"""


@pytest.mark.parametrize("width", [1280, 390])
def test_tables_are_aligned_and_never_break_words(browser: "Browser", scripted: Server, width: int) -> None:
    script, address = scripted
    script.says = [TABLE]
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(address)
    say(page, "table")
    answered(page, 1)
    cells = page.locator(".prose tbody tr").nth(1).locator("td")
    assert [cells.nth(at).evaluate("cell => getComputedStyle(cell).textAlign") for at in range(3)] == [
        "left",
        "right",
        "center",
    ]
    word = (
        "cell => { const range = document.createRange(); range.selectNodeContents(cell);"
        " return range.getClientRects().length; }"
    )
    assert page.locator(".prose tbody td").first.evaluate(word) == 1  # the long word stands in one line
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
