"""The comparison of llmctl with plain transformers for one family of models that take images."""

import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llmctl
from llmctl.cpu.program import compiled
from llmctl.errors import LlmctlError, first_line
from llmctl.generation.engine import Engine, engine_for_many
from llmctl.generation.image_input import with_images
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.prompt import encode_prompt
from llmctl.generation.request import Request, make_request
from llmctl.loading.image_encoder import image_encoder
from support.vision.build import build
from support.vision.conversations import CONVERSATIONS, messages, raw_prompt
from support.vision.families import FAMILIES
from support.vision.pictures import picture
from support.vision.reference import NEW_TOKENS, Answer, Reference


@dataclass
class Outcome:
    """The results of a family: a cell for each check, and notes with reasons."""

    family: str
    cells: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_family(folder: Path) -> llmctl.Model:
    """Load a checkpoint in float32, to answer greedily."""
    generation = {"max_new_tokens": NEW_TOKENS, "temperature": 0}
    return llmctl.load(folder, load={"dtype": "float32"}, generation=generation)


def prompt_of(conversation: str, name: str) -> Any:
    """Return a conversation of the tests as the library takes it."""
    if FAMILIES[name].template is not None:
        return messages(conversation)
    text, pictures = raw_prompt(conversation, FAMILIES[name].placeholder)
    return with_images(text, pictures)


def request_of(model: llmctl.Model, prompt: Any) -> Request:
    """Return the request for a prompt."""
    chat, processor = model.config.chat, LazyImageProcessor(model)
    return make_request(model, encode_prompt(model.tokenizer, with_images(prompt), chat, processor=processor))


def answer_of(engine: Engine, request: Request) -> tuple[int, ...]:
    """Return the answer to one request."""
    [(_, completion)] = engine.run([(0, request)])
    return tuple(completion.token_ids)  # type: ignore[union-attr]


def is_equal(ids: Sequence[int], answer: Answer) -> bool:
    """Return True if an answer is that of plain transformers, or ends earlier, at an end token."""
    return len(ids) > 1 and tuple(ids) == answer.ids[: len(ids)]


def check(name: str) -> Outcome:
    """Compare a family. A fault ends the checks and is in the cells and notes."""
    outcome = Outcome(name)
    try:
        with tempfile.TemporaryDirectory() as root:
            _check(outcome, build(name, Path(root) / name))
    except LlmctlError as error:
        outcome.cells.setdefault("alone", "no")
        outcome.notes.append(error.message)
    except Exception as error:  # noqa: BLE001 (any exception is a result)
        traceback.print_exc()
        outcome.cells["alone"] = "**error**"
        outcome.notes.append(f"{type(error).__name__}: {first_line(error)}")
    return outcome


def _check(outcome: Outcome, folder: Path) -> None:
    family, model = FAMILIES[outcome.family], load_family(folder)
    outcome.cells["compiled"] = "yes" if compiled(model.model) is not None else "no"
    outcome.cells["resized by"] = LazyImageProcessor(model)().backend
    reference = Reference(folder)
    conversations = [one for one in CONVERSATIONS if one not in family.cannot]
    outcome.notes += [f"{one}: plain transformers: {why}" for one, why in family.cannot.items()]
    expected = {one: reference.answer(one, family) for one in conversations}
    requests = {one: request_of(model, prompt_of(one, outcome.family)) for one in conversations}
    wrong = [one for one in conversations if requests[one].prompt.ids != expected[one].prompt]
    outcome.notes += [f"{one}: another prompt" for one in wrong]
    alone = {one: answer_of(engine_for_many(model), request) for one, request in requests.items()}
    together = {
        one: tuple(completion.token_ids)  # type: ignore[union-attr]
        for one, completion in engine_for_many(model).run(requests.items())
    }
    ways = {"alone": alone, "together": together, "arriving": _arriving(engine_for_many(model), requests)}
    for way, answers in ways.items():
        different = [one for one in conversations if not is_equal(answers[one], expected[one])]
        outcome.cells[way] = "**wrong**" if different or wrong else "yes"
        outcome.notes += [f"{way}: {one}" for one in different]
    if family.template is not None:
        outcome.cells["second turn"] = _second_turn(model)


def _arriving(engine: Engine, requests: Mapping[str, Request]) -> dict[str, tuple[int, ...]]:
    """Return the answers to requests that arrive at a running engine, as those of a server do."""
    answers: dict[str, tuple[int, ...]] = {}
    for name, request in requests.items():
        engine.add(name, request)
        for _ in range(2):
            answers |= _ended(engine)
    while engine.is_busy:
        answers |= _ended(engine)
    return answers


def _ended(engine: Engine) -> dict[str, tuple[int, ...]]:
    return {event.key: tuple(event.end.token_ids) for event in engine.step() if event.end is not None}  # type: ignore[union-attr]


def _second_turn(model: llmctl.Model) -> str:
    """Return the number of images that are encoded in the second turn of a conversation about one image."""
    engine, encoder = engine_for_many(model), image_encoder(model)
    content = [{"type": "image", "image": picture(7)}, {"type": "text", "text": "what is it?"}]
    first: list[dict[str, Any]] = [{"role": "user", "content": content}]
    request = request_of(model, first)
    text = model.tokenizer.decode(answer_of(engine, request), skip_special_tokens=True)
    turns = [
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
        {"role": "user", "content": [{"type": "text", "text": "and now?"}]},
    ]
    before = encoder.encoded
    answer_of(engine, request_of(model, [*first, *turns]))
    return f"{encoder.encoded - before} encoded"
