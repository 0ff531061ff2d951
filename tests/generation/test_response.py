"""Every path separates reasoning from the answer: streams in both engines, chat, and the command line."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.cli._image_input import PromptInput
from llmctl.cli._render import Output
from llmctl.cli.generate import _Printer, document
from llmctl.config import ChatSection
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.completion import Chunk, reasoning_document
from llmctl.generation.engine import engine_for_many
from llmctl.generation.pieces import ReasoningDelta, TextDelta
from llmctl.generation.prompt import Prompt, encode_prompt
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request
from support.families.reader import with_template
from support.families.table import FAMILIES
from support.tiny import write_model

TEMPLATES = Path(__file__).parents[1] / "support" / "templates" / "families"
HARMONY = "<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>final<|message|>Hello there."
GEMMA = "<|channel>thought\nSimple.<channel|>Hello there."
FAMILY = {family.small: family for family in FAMILIES}


class Script:
    """A logits processor that makes the model write ids."""

    def __init__(self, prompt_tokens: int, ids: list[int]) -> None:
        self._prompt_tokens, self._ids = prompt_tokens, ids

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Raise the logit of the next token."""
        scores[0, self._ids[min(ids.shape[1] - self._prompt_tokens, len(self._ids) - 1)]] += 1000
        return scores


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> llmctl.LoadedModel:
    folder = write_model(tmp_path_factory.mktemp("long") / "llama", max_position_embeddings=4096, vocab_size=512)
    return llmctl.load(folder, load={"dtype": request.param}, generation={"max_new_tokens": 200})


def with_family(tiny: llmctl.LoadedModel, name: str) -> llmctl.LoadedModel:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return replace(tiny, tokenizer=with_template(copy.deepcopy(tiny.tokenizer), template, FAMILY[name]))


def scripted(loaded: llmctl.LoadedModel, text: str, prompt: Prompt) -> list[Any]:
    tokenizer: Any = loaded.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [Script(len(prompt), [*ids, tokenizer.eos_token_id])]


@pytest.mark.parametrize(("family", "text"), [("gpt_oss", HARMONY), ("gemma4", GEMMA)])
def test_a_stream_and_an_engine_for_many_separate_reasoning(family: str, text: str, tiny: Any) -> None:
    loaded = with_family(tiny, family)
    prompt = encode_prompt(loaded.tokenizer, "hi", ChatSection())
    request = make_request(loaded, prompt)
    chunks = list(stream_request(loaded, request, processors=scripted(loaded, text, prompt)))
    answer = chunks[-1].completion
    assert answer is not None
    assert (answer.text, answer.reasoning) == ("Hello there.", "Simple.")
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert "".join(chunk.reasoning for chunk in chunks) == answer.reasoning
    engine, ends = engine_for_many(loaded), []
    engine.add("one", request, scripted(loaded, text, prompt))
    while engine.is_busy:
        ends += [event.end for event in engine.step() if event.end is not None]
    assert [(end.text, end.reasoning) for end in ends] == [("Hello there.", "Simple.")]  # type: ignore[union-attr]


def test_a_raw_prompt_has_no_parts(tiny: Any) -> None:
    loaded = with_family(tiny, "gpt_oss")
    prompt = encode_prompt(loaded.tokenizer, "hi", ChatSection(raw=True))
    request = make_request(loaded, prompt)
    *_, last = stream_request(loaded, request, processors=scripted(loaded, "<think>a</think>b", prompt))
    assert last.completion is not None
    assert (last.completion.text, last.completion.reasoning) == ("<think>a</think>b", "")


def test_chat_keeps_reasoning_apart_and_does_not_send_it_back(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmctl.generation.chat import conversation

    loaded = with_family(tiny, "gpt_oss")

    def stream(model: Any, request: Any, **options: Any) -> Iterator[Chunk]:
        return stream_request(model, request, processors=scripted(model, HARMONY, request.prompt), **options)

    monkeypatch.setattr(conversation, "stream_request", stream)
    session = ChatSession(loaded)
    pieces = list(session.stream("hi"))
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "Hello there."
    assert "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta)) == "Simple."
    assert (session.messages[-1].content, session.messages[-1].reasoning) == ("Hello there.", "Simple.")
    list(session.stream("and now?"))
    assert session.last is not None
    assert session.last.completion is not None
    sent = str(loaded.tokenizer.decode(list(session.last.completion.prompt.ids)))
    assert "Hello there." in sent
    assert "Simple." not in sent


def test_the_document_of_generate_and_a_row_of_a_batch_have_the_reasoning(tiny: Any) -> None:
    loaded = with_family(tiny, "gpt_oss")
    prompt = encode_prompt(loaded.tokenizer, "hi", ChatSection())
    request = make_request(loaded, prompt)
    *_, last = stream_request(loaded, request, processors=scripted(loaded, HARMONY, prompt))
    assert last.completion is not None
    body = document(loaded, PromptInput("hi"), [last.completion])
    assert body["prompt_templated"] is True
    assert (body["completions"][0]["text"], body["completions"][0]["reasoning"]) == ("Hello there.", "Simple.")
    assert reasoning_document(last.completion) == {"reasoning": "Simple."}


def test_generate_writes_only_the_answer_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with _Printer(Output(), wraps=True) as printer:
        for pieces in ((ReasoningDelta("Simple."),), (ReasoningDelta(" So"), TextDelta("Hello"))):
            printer.add(Chunk(pieces))
        assert capsys.readouterr().out == "Hello"
    assert capsys.readouterr().out == "\n"
