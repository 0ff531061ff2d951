"""A final message of the assistant is continued, whatever a template makes of it; the answer's text excludes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.detokenizer import TextAssembler
from llmctl.generation.inspection import inspect_prompt
from llmctl.generation.prompt import encode_prompt
from llmctl.loading.prepare import prepare
from llmctl.model.tokenizer import load_tokenizer
from llmctl.reproduce.script import transformers_script
from llmctl.transformers_compat import sanitising_arguments
from support.tiny import CHATML, write_tokenizer

Tiny = Callable[[str], Path]
ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
# the ways in which templates change a final message
TRIMS = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")
EMPTY_THOUGHT = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)
OPENS_THOUGHT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
CHANNELS = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<|final|>{% endif %}{{ m.content }}")
DROPS_THOUGHTS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")


def tokenizer_with(folder: Path, template: str | None = CHATML) -> Any:
    write_tokenizer(folder, template=template)
    return load_tokenizer(folder, {"padding_side": "left"}, source="acme/tiny")


def ending_with(content: str, **message: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content, **message}]


@pytest.mark.parametrize(
    ("template", "before"),
    [
        (CHATML, ""),
        (TRIMS, ""),
        (EMPTY_THOUGHT, "<think>\n\n</think>\n\n"),
        (OPENS_THOUGHT, ""),
        (CHANNELS, "<|final|>"),
    ],
)
@pytest.mark.parametrize("prefill", ["Sure", "Sure: ", "{\n  "])
def test_the_prompt_ends_with_the_final_message(template: str, before: str, prefill: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    for prompt in (
        encode_prompt(tokenizer, ending_with(prefill), ChatSection()),
        encode_prompt(tokenizer, "hi", ChatSection(prefill=prefill)),
    ):
        assert tokenizer.decode(prompt.ids) == f"{ASKED}{before}{prefill}"
        assert prompt.is_open


def test_control_tokens_in_a_prefill_are_text_or_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    chat = ChatSection(prefill="the <|im_end|> is")
    if not sanitising_arguments(tokenizer):  # an older transformers
        with pytest.raises(UserError, match="contains the control token"):
            encode_prompt(tokenizer, "hi", chat)
        return
    prompt = encode_prompt(tokenizer, "hi", chat)
    assert tokenizer.decode(prompt.ids) == f"{ASKED}the <|im_end|> is"
    assert prompt.ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_an_empty_final_message_is_the_beginning_of_a_turn(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    for content in ("", "\n"):
        prompt = encode_prompt(tokenizer, ending_with(content), ChatSection())
        assert tokenizer.decode(prompt.ids) == ASKED + content


def test_a_final_message_with_calls_is_not_continued(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    tokenizer = tokenizer_with(tmp_path)
    prompt = encode_prompt(tokenizer, ending_with("", tool_calls=[call]), ChatSection())
    assert tokenizer.decode(prompt.ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("turn", f"{ASKED}Sure<|im_end|>\n<|im_start|>assistant\n"),
        ("inside", f"{ASKED}Sure"),
        ("after", f"{ASKED}Sure<|im_end|>\n"),
    ],
)
def test_the_ending_can_be_chosen(ending: Any, text: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    assert tokenizer.decode(encode_prompt(tokenizer, ending_with("Sure"), ChatSection(), ending=ending).ids) == text


def test_a_configured_prefill_does_not_replace_a_final_message(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path)
    prompt = encode_prompt(tokenizer, ending_with("Sure"), ChatSection(prefill="No"))
    assert tokenizer.decode(prompt.ids) == f"{ASKED}Sure"


@pytest.mark.parametrize(
    ("template", "prompt", "chat", "words"),
    [
        (DROPS_THOUGHTS, ending_with("<think>a</think>b"), ChatSection(), "it changes the final message"),
        (CHATML, ending_with("", reasoning_content="a"), ChatSection(), "reasoning but no text"),
        (CHATML, [{"role": "assistant", "content": ""}], ChatSection(), "the prompt is empty"),
        (None, "hi", ChatSection(prefill="a"), "a prefill needs a chat template"),
        (CHATML, "hi", ChatSection(raw=True, prefill="a"), "a prefill needs a chat template"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    template: str | None, prompt: Any, chat: ChatSection, words: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    with pytest.raises(UserError, match=words):
        encode_prompt(tokenizer, prompt, chat)


def test_inspection_shows_a_prefill_without_a_warning(tmp_path: Path) -> None:
    inspected = inspect_prompt(
        tokenizer_with(tmp_path), "hi", ChatSection(prefill="Sure"), eos_token_ids=[0], context_length=256,
        max_new_tokens=9,
    )  # fmt: skip
    assert (inspected.text, inspected.warnings) == (f"{ASKED}Sure", ())


def test_a_space_between_a_prompt_and_its_continuation_is_kept() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}, unk_token="s"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer.decode([1]) == "cat", "this decoder drops the first space, as SentencePiece's does"
    for before, text in (((), "cats"), ((0,), " cats")):
        assembler = TextAssembler(tokenizer, before=before)
        assert assembler.add(1) + assembler.add(2) + assembler.finish() == text == assembler.shown


def test_the_answer_excludes_the_prefill_and_a_replay_repeats_it(run: Any, tiny_models: Tiny, tmp_path: Path) -> None:
    model = str(tiny_models("llama"))
    arguments = ["generate", "--model", model, "--prompt", "the capital", "-n", "6", "--dtype", "fp32"]
    done = run(*arguments, "--prefill", "of france ", "--json")
    document = json.loads(done.stdout)
    file = tmp_path / "run.json"
    file.write_text(done.stdout)
    loaded = llmctl.load(model, load={"dtype": "float32"}, generation={"max_new_tokens": 6})
    messages = [{"role": "user", "content": "the capital"}, {"role": "assistant", "content": "of france "}]
    answer = llmctl.generate(loaded, messages)
    [completion] = document["completions"]
    assert (completion["text"], completion["token_ids"]) == (answer.text, list(answer.token_ids))
    assert loaded.tokenizer.decode(document["prompt_ids"]).endswith("assistant\nof france ")
    assert document["prompt_is_open"] is True
    assert run("replay", str(file)).returncode == 0
    [row] = list(llmctl.generate_batch(loaded, [messages]))
    assert row.text == answer.text


def test_the_script_continues_the_final_message(tiny_models: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"model": {"id": str(tiny_models("llama"))}, "load": {"dtype": "float32"}, "chat": {"prefill": "of "}}
    settings = llmctl.config.settings_from_mapping({**values, "generation": {"max_new_tokens": 5}})
    script = transformers_script(prepare(settings), prompt="the capital")
    assert "continue_final_message=True" in script
    exec(compile(script, "script", "exec"), {})
    answer = llmctl.generate(llmctl.load(config=settings), "the capital")
    assert capsys.readouterr().out == f"{answer.text}\n"


def test_a_chat_begins_each_answer_with_the_prefill_and_sends_it_back(tiny_models: Tiny) -> None:
    loaded = llmctl.load(
        tiny_models("llama"), load={"dtype": "float32"}, generation={"max_new_tokens": 6}, chat={"prefill": "of "}
    )
    session = ChatSession(loaded)
    first = "".join(piece.text for piece in session.stream("the capital"))
    assert first == "of " + llmctl.generate(loaded, "the capital").text == session.messages[-1].content
    "".join(piece.text for piece in session.stream("and rome"))
    assert session.last is not None
    assert session.last.completion is not None
    prompt = loaded.tokenizer.decode(session.last.completion.prompt.ids)
    assert f"assistant\n{first}<|im_end|>" in prompt
    assert prompt.endswith("assistant\nof ")


def test_thinking_can_be_changed_during_a_chat(tiny_copy: Callable[..., Path]) -> None:
    loaded = llmctl.load(tiny_copy(), generation={"max_new_tokens": 2})
    session = ChatSession(loaded)
    with pytest.raises(UserError, match="cannot turn thinking on or off"):
        session.set_thinking(True)
    loaded.tokenizer.chat_template = CHATML + "{{ enable_thinking }}"
    session.set_thinking(False)
    list(session.stream("hi"))
    assert session.last is not None
    assert session.last.completion is not None
    assert loaded.tokenizer.decode(session.last.completion.prompt.ids).endswith("assistant\nFalse")
