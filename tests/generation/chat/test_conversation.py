"""A conversation: turns, undo, retry, and the reuse of keys and values, which changes no text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.errors import UserError
from llmctl.generation.chat.attachments import attach
from llmctl.generation.chat.conversation import ChatSession
from llmctl.generation.chat.repetition import LoopGuard
from llmctl.generation.chat.transcript import Message, Transcript, export_markdown, read, save
from llmctl.generation.prompt import encode_prompt
from support.vision.pictures import picture

Tiny = Callable[[str], Path]


def load_tiny(folder: Path, *, kernels: bool = True, **generation: Any) -> llmctl.LoadedModel:
    load = {"dtype": "float32", "cpu_kernels": kernels}
    return llmctl.load(folder, generation={"max_new_tokens": 12, **generation}, load=load)


def say(session: ChatSession, text: str) -> str:
    return "".join(piece.text for piece in session.stream(text))


def conversation(session: ChatSession) -> list[str]:
    """Return every answer of some turns with an undo, a retry and an edit."""
    answers = [say(session, "the capital of france"), say(session, "and of italy ?"), say(session, "two plus two")]
    session.undo()
    answers.append(say(session, "a small model"))
    answers.append("".join(piece.text for piece in session.retry()))
    session.undo()
    session.undo()
    answers.append(say(session, "every book"))
    answers.append("".join(piece.text for piece in session.edit("every library")))
    return answers


def prefilled(session: ChatSession) -> int:
    assert session.last is not None
    return session.last.prefilled_tokens


def prompt_ids(session: ChatSession, messages: Sequence[Message]) -> list[int]:
    sent = [{"role": message.role, "content": message.content} for message in messages]
    return list(encode_prompt(session.loaded.tokenizer, sent, session.loaded.config.chat).ids)


def test_cached_earlier_turns_change_no_text(architecture: str, tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models(architecture))
    assert conversation(ChatSession(loaded)) == conversation(ChatSession(loaded, reuse=False))


def test_the_second_turn_computes_only_new_tokens(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    session = ChatSession(loaded)
    say(session, "the capital of france")
    assert session.last is not None
    assert session.last.completion is not None
    assert prefilled(session) == session.last.prompt_tokens
    read_already = prompt_ids(session, session.messages[:1]) + list(session.last.completion.token_ids[:-1])
    say(session, "and of italy ?")
    now = prompt_ids(session, session.messages[:3])
    # the random text of a random model is not always cut into tokens as the model wrote it
    common = next(n for n, pair in enumerate(zip(read_already, now, strict=False)) if pair[0] != pair[1])
    assert prefilled(session) == len(now) - common
    assert common > 20


def test_a_retry_computes_one_token_of_the_prompt(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")))
    first = say(session, "the capital of france")
    assert "".join(piece.text for piece in session.retry()) == first
    assert prefilled(session) == 1


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.8}, {"seed": 5}, {"max_new_tokens": 9}, {"top_k": 5}, {"min_p": 0.1}, {"stop_strings": ["zz"]},
     {"repetition_penalty": 1.2}, {"logprobs": 1}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_changed_setting_computes_only_new_tokens(change: dict[str, Any], tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), max_new_tokens=4))
    say(session, "the capital of france")
    assert session.last is not None
    before = session.last.prompt_tokens
    session.set_generation(**change)
    say(session, "and of italy ?")
    assert prefilled(session) <= session.last.prompt_tokens - before


def test_a_continued_answer_is_the_one_with_a_higher_limit(architecture: str, tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models(architecture))
    whole = say(ChatSession(with_limit(loaded, 18)), "the capital of france")
    session = ChatSession(with_limit(loaded, 6))
    say(session, "the capital of france")
    for _ in range(2):
        list(session.continue_answer())
        assert prefilled(session) == 1
    assert session.messages[-1].content == whole
    assert len(session.messages) == 2


def with_limit(loaded: llmctl.LoadedModel, tokens: int) -> llmctl.LoadedModel:
    session = ChatSession(loaded)
    session.set_generation(max_new_tokens=tokens)
    return session.loaded


def test_a_sampled_answer_continues_with_the_next_seed(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), max_new_tokens=4, temperature=1.5))
    session.set_generation(seed=7)
    say(session, "the capital of france")
    list(session.continue_answer())
    assert session.last is not None
    assert session.last.seed == 8
    say(session, "and of italy ?")
    assert session.last.seed == 7


def test_a_stopped_and_a_saved_answer_continue_from_their_text(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), max_new_tokens=150))
    pieces = session.stream("the capital of france")
    next(pieces)
    pieces.close()
    begun = session.messages[-1].content
    session.set_generation(max_new_tokens=12)
    resumed = ChatSession(session.loaded, messages=session.messages)
    for one in (session, resumed):
        list(one.continue_answer())
        assert one.messages[-1].content.startswith(begun)
        assert len(one.messages[-1].content) > len(begun)
    assert session.messages == resumed.messages


def test_only_an_answer_without_an_end_and_a_structure_can_be_continued(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")))
    with pytest.raises(UserError, match="no answer"):
        list(session.continue_answer())
    first = say(session, "the capital of france")
    session.undo()
    session.set_generation(stop_strings=[first[3:6]])
    say(session, "the capital of france")
    with pytest.raises(UserError, match="complete"):
        list(session.continue_answer())
    chosen = llmctl.load(tiny_models("llama"), structure={"regex": "[a-z]{200}"}, generation={"max_new_tokens": 3})
    session = ChatSession(chosen)
    say(session, "the capital of france")
    with pytest.raises(UserError, match="structure"):
        list(session.continue_answer())


def test_without_a_configured_limit_an_answer_may_fill_the_context(tiny_models: Tiny) -> None:
    loaded = llmctl.load(tiny_models("llama"), load={"dtype": "float32"}, structure={"regex": "[a-z]{2000}"})
    completion = ChatSession(loaded).send("the capital of france")
    assert completion.prompt_token_count + len(completion.token_ids) == loaded.context_length
    assert completion.length_limit == "context"


@pytest.mark.parametrize("unit", ["no ", "This is the same sentence, over and over. ", "-" * 90 + "\n"])
def test_a_text_that_repeats_itself_is_a_loop_however_it_arrives(unit: str) -> None:
    guard = LoopGuard()
    assert any(guard.add(part) for part in ["It begins well. ", *[unit] * 400])


def test_lists_rules_and_tables_are_no_loop() -> None:
    rows = [f"| {number} | the row {number} | yes |\n" for number in range(200)]
    text = ["-" * 80, *("\n", "# Head\n"), *rows, *(f"{number}, " for number in range(1000)), "ha " * 50]
    guard = LoopGuard()
    assert not any(guard.add(part) for part in text)


def test_a_full_sliding_window_of_transformers_continues_and_is_recomputed_after_an_undo(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("gemma3"), kernels=False))
    say(session, "the capital of france")
    say(session, "and of italy ?")
    assert session.last is not None
    assert prefilled(session) < session.last.prompt_tokens
    session.undo()
    say(session, "a small model")
    assert prefilled(session) == session.last.prompt_tokens


def test_without_reuse_every_turn_computes_everything(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")), reuse=False)
    say(session, "the capital of france")
    say(session, "and of italy ?")
    assert session.last is not None
    assert prefilled(session) == session.last.prompt_tokens


def test_a_retry_uses_the_next_seed_and_a_new_message_the_first(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), temperature=1.5))
    session.set_generation(seed=42)
    first = say(session, "the capital of france")
    second, third = ("".join(piece.text for piece in session.retry()) for _ in range(2))
    assert len({first, second, third}) == 3
    session.undo()
    assert say(session, "the capital of france") == first


def test_a_stopped_answer_is_kept_and_marked(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"), max_new_tokens=150)
    session = ChatSession(loaded)
    pieces = session.stream("the capital of france")
    begun = next(pieces).text
    pieces.close()
    assert session.messages[-1].role == "assistant"
    assert session.messages[-1].content.startswith(begun)
    assert session.messages[-1].stopped
    session.set_generation(max_new_tokens=12)
    after = say(session, "and of italy ?")
    other = ChatSession(session.loaded, messages=session.messages[:2], reuse=False)
    assert say(other, "and of italy ?") == after


def test_an_error_leaves_the_conversation_as_it_was(tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), kernels=False))
    say(session, "the capital of france")
    before = list(session.messages)

    def fail(**_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(session.loaded.model, "generate", fail)
        with pytest.raises(RuntimeError, match="planted"):
            say(session, "and of italy ?")
    assert session.messages == before
    fresh = ChatSession(session.loaded, messages=before, reuse=False)
    assert say(session, "two plus two") == say(fresh, "two plus two")


def test_undo_and_retry_need_a_message(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")))
    with pytest.raises(UserError, match="the conversation has no message yet"):
        session.undo()
    with pytest.raises(UserError, match="the conversation has no message yet"):
        list(session.retry())
    with pytest.raises(UserError, match="the message is empty"):
        list(session.stream(" \n"))


def test_near_the_end_of_the_context_the_oldest_turns_can_be_dropped(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), max_new_tokens=20))
    said = 0
    while not session.context_usage("one more word").is_tight:
        said += 1
        say(session, f"the capital of france {said}")
    before = list(session.messages)
    dropped = session.drop_oldest("one more word")
    assert 0 < dropped < len(before)
    assert session.messages == before[dropped:]
    assert session.messages[0].role == "user"
    assert not session.context_usage("one more word").is_tight
    assert say(session, "one more word")


def test_before_a_retry_the_oldest_turns_can_be_dropped_and_the_last_is_kept(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama"), max_new_tokens=20))
    while not session.context_usage(
        session.last_text if session.messages else "", replace_last=bool(session.messages)
    ).is_tight:
        say(session, f"the capital of france {len(session.messages)}")
    before = list(session.messages)
    dropped = session.drop_oldest(session.last_text, replace_last=True)
    assert 0 < dropped < len(before)
    assert session.messages == before[dropped:]
    list(session.retry())
    assert [message.content for message in session.messages[:-1]] == [m.content for m in before[dropped:-1]]


def test_changed_settings_are_kept_with_another_model(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")))
    session.set_generation(temperature="0.7")
    session.set_generation(seed="9")
    session.release()
    session.use(load_tiny(tiny_models("qwen3")))
    assert session.loaded.plan.generation_kwargs["temperature"] == 0.7
    assert session.loaded.plan.seed == 9
    assert "Qwen3" in type(session.loaded.model).__name__


def test_a_message_that_does_not_fit_alone_drops_no_turn(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")))
    say(session, "the capital of france")
    with pytest.raises(UserError, match=r"the message has \d{3,} tokens, the context holds 256"):
        session.drop_oldest("word " * 400)
    with pytest.raises(UserError, match=r"about \d{7} tokens"):
        session.drop_oldest("word " * 2_000_000)
    assert len(session.messages) == 2


def test_a_setting_that_the_schema_refuses_changes_nothing(tiny_models: Tiny) -> None:
    session = ChatSession(load_tiny(tiny_models("llama")))
    before = session.loaded
    with pytest.raises(UserError):
        session.set_generation(temperature="-1")
    assert session.loaded is before
    session.set_generation(temperature="0.7")
    assert session.loaded.plan.generation_kwargs["temperature"] == 0.7
    assert session.loaded.plan.generation_kwargs["do_sample"] is True


def test_reasoning_is_not_sent_back(tiny_models: Tiny) -> None:
    loaded = load_tiny(tiny_models("llama"))
    turns = [Message("user", "two plus two"), Message("assistant", "is four", reasoning="every book" * 9)]
    plain = [turns[0], Message("assistant", "is four")]
    assert ChatSession(loaded, messages=turns).context_usage() == ChatSession(loaded, messages=plain).context_usage()


TALK = Transcript(
    "org/name",
    None,
    "Be brief.",
    (Message("user", "two\nlines \u2028"), Message("assistant", "é", reasoning="hm", stopped=True)),
)


def test_a_saved_conversation_is_read_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    save(TALK, file)
    assert read(file) == TALK
    lines = file.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4, "a header, a line a message, the last newline"
    assert "media" not in lines[1]


def test_images_of_a_message_are_saved_by_path_and_hash(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    images = attach([tmp_path / "a.png"])
    talk = replace(TALK, messages=(replace(TALK.messages[0], images=images), *TALK.messages[1:]))
    file = tmp_path / "talk.jsonl"
    save(talk, file)
    assert read(file) == talk
    picture(4).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r":2: .*a.png is no longer the picture"):
        read(file)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r":2: .*a.png does not exist"):
        read(file)
    with pytest.raises(UserError, match="comes from no file"):
        save(replace(TALK, messages=(replace(TALK.messages[0], images=attach([picture(0)])),)), file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a saved conversation"),
        ("{}\n", "not a saved conversation"),
        ("nonsense\n", ":1: this is not JSON"),
        ('{"schema": "llmctl.chat/1", "model": "m"}\n[]\n', ":2: this is not a JSON object"),
        ('{"schema": "llmctl.chat/1", "model": "m"}\n{"role": "tool"}\n', ":2: role is neither"),
        ('{"schema": "llmctl.chat/1", "model": "m"}\n{"role": "user"}\n', ":2: content is not a string"),
        ('{"schema": "llmctl.chat/1", "model": "m"}\n{"role": "user", "content": "x", "media": [1]}\n', ":2: media"),
    ],
)
def test_an_invalid_conversation_file_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(file)


def test_an_exported_conversation_is_markdown_without_reasoning(tmp_path: Path) -> None:
    file = tmp_path / "talk.md"
    export_markdown(TALK, file)
    text = file.read_text(encoding="utf-8")
    assert "## Assistant (stopped)\n\né\n" in text
    assert "hm" not in text


@pytest.mark.smollm
def test_a_real_model_computes_only_new_tokens_in_its_second_turn(smollm: Path) -> None:
    loaded = llmctl.load(smollm, generation={"max_new_tokens": 24})
    session = ChatSession(loaded)
    say(session, "What is the capital of France?")
    assert session.last is not None
    assert session.last.completion is not None
    known = session.last.prompt_tokens + len(session.last.completion.token_ids) - 1
    say(session, "And of Italy?")
    assert prefilled(session) == session.last.prompt_tokens - known
    assert conversation(ChatSession(loaded)) == conversation(ChatSession(loaded, reuse=False))
