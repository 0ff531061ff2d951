"""Chats with models whose cache cannot be kept between turns: all tokens are computed again."""

from pathlib import Path

import pytest

import llmctl
from llmctl.generation.completion import Completion
from llmctl.generation.engine import engine_for_chat, engine_for_one
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from support.architectures.build import build


@pytest.mark.parametrize("name", ["openai-gpt", "prophetnet"])
def test_a_second_turn_is_that_of_a_new_engine(name: str, tmp_path: Path) -> None:
    build(name, tmp_path / name)
    model = llmctl.load(tmp_path / name, load={"dtype": "float32"}, generation={"max_new_tokens": 4, "temperature": 0})
    first = Prompt(tuple(range(10, 60)))
    prompts = [first, first.followed_by(range(60, 90))]
    chat = engine_for_chat(model)
    for prompt in prompts:
        request = make_request(model, prompt)
        [(_, turn)], [(_, alone)] = chat.run([(0, request)]), engine_for_one(model, request).run([(0, request)])
        assert isinstance(turn, Completion)
        assert isinstance(alone, Completion)
        assert turn.token_ids == alone.token_ids
    assert model.score("b c", prompt="a").logprobs, "scores keep no cache either"
