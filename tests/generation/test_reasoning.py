"""Reasoning and channels are separated from the answer, however the text arrives."""

from typing import Any

import pytest
from llguidance import LLMatcher

from llmctl.config import StructureSection
from llmctl.generation.channels import channels_of
from llmctl.generation.pieces import assemble
from llmctl.generation.reasoning import ReasoningFormat, tagged_reasoning
from llmctl.generation.response import ResponseRules
from llmctl.generation.structured.constraint import _vocabulary
from llmctl.generation.structured.structure import make_structure
from llmctl.model.tokenizer import load_tokenizer
from support.tiny import write_tokenizer

THINK = tagged_reasoning("...</think>...")
UNKNOWN = tagged_reasoning("no tags")
COHERE = tagged_reasoning("<|START_RESPONSE|>")
APRIEL = tagged_reasoning("[BEGIN FINAL RESPONSE]")
GEMMA = tagged_reasoning("<|channel>")
GRANITE = tagged_reasoning("<think></think> <response></response>")
HARMONY = channels_of("<|channel|><|message|>")
MUSE = channels_of("to=self <|message|>")
SOLAR = channels_of("<|think|><|begin|>")
FUNCTIONARY = channels_of(">>>all")
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"


def rules(form: Any, tail: str = "", prefill: str = "") -> ResponseRules:
    return ResponseRules(form, tail, prefill, None, frozenset())


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("form", "tail", "text", "reasoning", "answer"),
    [
        (UNKNOWN, "", "\n<think>a < b</think>\n\nFour. <think>", "a < b", "Four. <think>"),
        (UNKNOWN, "", "[THINK]a", "", "[THINK]a"),
        (THINK, "assistant\n<think>\n", "of course</think>\nFour.", "of course", "Four."),
        (THINK, "", "Four, <thi", "", "Four, <thi"),
        (THINK, "", "<thi", "", "<thi"),
        (THINK, "", "  spaces stay  ", "", "  spaces stay  "),
        (THINK, "<think>", "never ends", "never ends", ""),
        (THINK, "", "the tag <think> is no reasoning</think>", "", "the tag <think> is no reasoning</think>"),
        (THINK, "<think>\n\n</think>\n\n", "Four.", "", "Four."),
        (COHERE, "<|START_THINKING|>", "a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b"),
        (COHERE, "<|END_THINKING|>", "<|START_RESPONSE|>b<|END_RESPONSE|>", "", "b"),
        (APRIEL, "Here are my reasoning steps:\n", "a\n[BEGIN FINAL RESPONSE]\nb [END FINAL RESPONSE]", "a\n", "b "),
        (GEMMA, "<|turn>model\n", "<|channel>thought\na\n<channel|>b", "a\n", "b"),
        (GEMMA, "<|turn>model\n", "<|channel>thought\n<channel|>b", "", "b"),
        (GRANITE, "", "<think>a</think><response>b</response>", "a", "b"),
        (
            HARMONY,
            "<|start|>assistant",
            f"{ANALYSIS}Simple.<|end|><|start|>assistant{FINAL}Hello!",
            "Simple.",
            "Hello!",
        ),
        (HARMONY, "<|start|>assistant", f"{FINAL}Hello!<|return|>", "", "Hello!"),
        (HARMONY, "<|start|>assistant", "<|channel|>commentary<|message|>First,<|end|>", "", "First,"),
        (HARMONY, "<|start|>assistant", "no header", "", "no header"),
        (HARMONY, f"<|start|>assistant{FINAL}", "Hello", "", "Hello"),
        (HARMONY, f"<|start|>assistant{ANALYSIS}", f"a<|end|><|start|>assistant{FINAL}b", "a", "b"),
        (MUSE, "<|start|>assistant", " to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>b", "a", "b"),
        (SOLAR, "<|begin|>assistant", "<|think|>a<|end|><|begin|>assistant<|content|>b<|end|>", "a", "b"),
        (FUNCTIONARY, "\n\n>>>", "all\nHello\nthere", "", "Hello\nthere"),
        (FUNCTIONARY, "\n\n>>>", "Hello\nthere", "", "Hello\nthere"),
    ],
)
def test_reasoning_is_separated(
    size: int, form: ReasoningFormat, tail: str, text: str, reasoning: str, answer: str
) -> None:
    splitter = rules(form, tail).splitter()
    pieces = [piece for at in range(0, len(text), size) for piece in splitter.add(text[at : at + size])]
    parts = assemble([*pieces, *splitter.finish()])
    assert (parts.reasoning, parts.text) == (reasoning, answer)


def test_a_prefill_decides_the_part_and_is_not_in_the_answer() -> None:
    splitter = rules(THINK, "<|im_start|>assistant\n", prefill="<think>so").splitter()
    parts = assemble([*splitter.add(" it is</think>b"), *splitter.finish()])
    assert (parts.reasoning, parts.text) == (" it is", "b")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder, {}, source="acme/tiny")
    marks = [
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        "<|START_RESPONSE|>",
        "<|END_THINKING|>",
        "<channel|>",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


@pytest.mark.parametrize(
    "section", [{"json_schema": {"type": "integer"}}, {"regex": "[0-9]+"}, {"grammar": 'start: "7"'}]
)
@pytest.mark.parametrize(
    ("form", "tail", "before"),
    [
        (THINK, "<think>\n", "it is {seven}</think>\n\n"),
        (THINK, "assistant\n", "<think>seven</think>\n\n"),
        (THINK, "assistant\n", ""),
        (THINK, "</think>\n\n", ""),
        (COHERE, "<|START_THINKING|>", "a<|END_THINKING|><|START_RESPONSE|>"),
        (GEMMA, "model\n", "<|channel>thought\na<channel|>"),
        (HARMONY, "<|start|>assistant", f"{ANALYSIS}a<|end|><|start|>assistant{FINAL}"),
        (HARMONY, "<|start|>assistant", FINAL),
    ],
)
def test_a_structure_begins_after_reasoning(section: Any, form: Any, tail: str, before: str, tokenizer: Any) -> None:
    structure = rules(form, tail).structure(tokenizer, make_structure(StructureSection(**section)))
    assert structure is not None

    def accepts(text: str) -> bool:
        matcher = LLMatcher(_vocabulary(tokenizer)._inner, structure.grammar, log_level=0)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())

    assert accepts(f"{before}7")
    assert not accepts(f"{before}seven")
