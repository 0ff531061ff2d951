"""Batches from Python: each row is answered as alone, with its own settings; a bad row affects no other."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import llmctl
from llmctl.generation.batch.keys import identity, row_key
from llmctl.generation.batch.rows import rows_of
from llmctl.generation.media import Media
from llmctl.machine.sandbox import run_bounded_each

Tiny = Callable[[str], Path]
PROMPTS = ["the capital of france", "a small model wanted to speak", "two plus two is"]


@pytest.fixture(scope="module")
def loaded(tiny_models: Tiny) -> llmctl.LoadedModel:
    return load(tiny_models("llama"))


def load(folder: Path, **more: Any) -> llmctl.LoadedModel:
    sections: dict[str, Any] = {"generation": {"max_new_tokens": 8}, "load": {"dtype": "float32"}, **more}
    return llmctl.load(folder, **sections)


def test_every_row_gets_the_text_it_would_get_alone(loaded: llmctl.LoadedModel) -> None:
    found = list(llmctl.generate_batch(loaded, PROMPTS))
    assert [answer.row.id for answer in found] == [1, 2, 3]
    assert [answer.text for answer in found] == [llmctl.generate(loaded, prompt).text for prompt in PROMPTS]


def test_a_row_has_its_own_settings_seed_and_system_prompt(loaded: llmctl.LoadedModel, tiny_models: Tiny) -> None:
    hot = {"temperature": 1.5, "max_new_tokens": 5}
    first_tokens = llmctl.generate(loaded, PROMPTS[0]).token_ids
    rows = [
        PROMPTS[0],
        {"prompt": PROMPTS[0], "generation": hot, "seed": 7},
        {"prompt": PROMPTS[0], "generation": hot, "seed": 8},
        {"prompt": PROMPTS[0], "system": "be kind"},
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": PROMPTS[0]}],
        {"prompt": PROMPTS[0], "generation": {"extra_eos_tokens": [first_tokens[2]]}},
    ]
    found = [answer.completion for answer in llmctl.generate_batch(loaded, rows) if answer.completion]
    plain, seven, eight, kind, messages, short = found
    alone = load(tiny_models("llama"), generation=hot)
    assert seven.text == llmctl.generate(alone, PROMPTS[0], seed=7).text
    assert (seven.seed, eight.seed, plain.seed) == (7, 8, 0)
    assert seven.token_ids != eight.token_ids
    assert kind.text == messages.text != plain.text
    assert kind.prompt_token_count > plain.prompt_token_count
    assert (short.token_ids, short.finish_reason) == (first_tokens[:3], "stop")


def test_a_bad_row_is_an_error_in_its_place(loaded: llmctl.LoadedModel) -> None:
    rows = ["", PROMPTS[0], {"prompt": "x", "generation": {"top_q": 1}}, "word " * 300, PROMPTS[1]]
    found = list(llmctl.generate_batch(loaded, rows))
    assert [answer.row.number for answer in found] == [1, 2, 3, 4, 5]
    said = [str(answer.error) if answer.error else "" for answer in found]
    assert "prompt is empty" in said[0]
    assert "did you mean generation.top_p?" in said[2]
    assert "the context of" in said[3]
    assert (said[1], said[4]) == ("", "")
    with pytest.raises(llmctl.UserError, match="the context of"):
        found[3].text  # noqa: B018


def test_rows_may_be_endless_and_closing_stops(loaded: llmctl.LoadedModel) -> None:
    taken = count()
    answers = llmctl.generate_batch(loaded, (f"row {next(taken)}" for _ in count()))
    assert next(answers).row.number == 1
    answers.close()  # type: ignore[attr-defined]
    assert next(taken) < 2000


def test_a_template_that_never_ends_or_refuses_fails_one_row(
    loaded: llmctl.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run_bounded_each.__kwdefaults__, "seconds", 1.0)
    template = tmp_path / "hangs.jinja"
    template.write_text(
        "{% if 'hang' in messages[0].content %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    one, hang, no, two = llmctl.generate_batch(with_template(loaded, template), ["one", "hang", "no", "two"])
    assert (one.error, two.error) == (None, None)
    assert "takes more than" in str(hang.error)
    assert "the chat template refuses this conversation: not that" in str(no.error)


def with_template(loaded: llmctl.LoadedModel, template: Path) -> llmctl.LoadedModel:
    chat = loaded.config.chat.model_copy(update={"template": str(template)})
    config = loaded.config.model_copy(update={"chat": chat})
    return replace(loaded, prepared=replace(loaded.prepared, config=config))


def test_the_key_depends_on_everything_that_determines_the_answer(tiny_models: Tiny, tmp_path: Path) -> None:
    folder = tiny_models("llama")
    run = identity(load(folder))

    def key(row: Any) -> str:
        [parsed] = rows_of([row])
        return row_key(parsed, run)

    assert key("a") == key({"prompt": "a", "id": "x", "label": 1})
    others = [
        "b",
        {"prompt": "a", "seed": 1},
        {"prompt": "a", "system": "s"},
        {"prompt": "a", "generation": {"top_k": 1}},
        {"prompt": "a", "structure": {"json_schema": {"properties": {"x": {}, "y": {}}}}},
        {"prompt": "a", "structure": {"json_schema": {"properties": {"y": {}, "x": {}}}}},
    ]
    assert len({key(row) for row in ["a", *others]}) == 7
    [plain] = rows_of(["a"])
    assert row_key(plain, run).startswith("3e458cceaa1d762e-"), "journals of earlier versions stay valid"
    pictures = [replace(plain, media=(Media("image", content),)) for content in ("aa", "bb")]
    assert len({row_key(row, run) for row in (plain, *pictures)}) == 3

    assert identity(load(folder)) == run
    hot = identity(load(folder, generation={"max_new_tokens": 8, "temperature": 1.0}))
    assert (hot.model, hot.settings != run.settings) == (run.model, True)
    by_class = identity(load(folder, tokenizer={"source": "class"}))
    assert (by_class.model, by_class.settings != run.settings) == (run.model, True)
    half = identity(load(folder, load={"dtype": "bfloat16"}))
    assert (half.settings, half.model != run.model) == (run.settings, True)
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}")
    one = identity(load(folder, chat={"template": str(template)}))
    template.write_text("{{ messages[0].content }}!")
    assert one.settings != identity(load(folder, chat={"template": str(template)})).settings


def test_another_model_in_the_same_folder_has_another_identity(tiny_models: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_models("llama"), tmp_path / "copy")
    first = identity(load(folder))
    assert first == identity(load(tiny_models("llama")))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert identity(load(folder)).model != first.model


def test_a_row_has_its_own_structure(loaded: llmctl.LoadedModel) -> None:
    more = {"prompt": "x", "seed": 5, "generation": {"temperature": 1.5, "max_new_tokens": 60}}
    triple = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "maxItems": 3}
    rows = [
        {**more, "structure": {"choices": ["yes", "no"]}},
        {**more, "structure": {"json_schema": triple}},
        {**more, "structure": {"json_schema": {"type": "array", "uniqueItems": True}}},
        {**more, "structure": {"json_schema": "schema.json"}},
        {**more, "structure": {"grammar": "rules.lark"}},
        {**more, "json_schema": triple},
        {**more, "choices": ["A", "B"]},
    ]
    choice, parsed, *bad, own_field = llmctl.generate_batch(loaded, rows)
    assert choice.text in ("yes", "no")
    assert len(json.loads(parsed.text)) == 3
    messages = [answer.error.message for answer in bad if answer.error]
    assert "#/uniqueItems" in messages[0]
    assert "must be the schema itself" in messages[1]
    assert "must be the grammar itself" in messages[2]
    assert "json_schema is a setting" in messages[3]
    assert own_field.row.fields == {"choices": ["A", "B"]}
    keys = {row_key(answer.row, identity(loaded)) for answer in (choice, parsed)}
    assert len(keys) == 2, "the structure is part of the key"


@pytest.mark.parametrize("way", ["draft", "lookup"])
def test_proposed_tokens_are_checked_in_a_batch_and_change_no_text(tiny_models: Tiny, way: str) -> None:
    folder = tiny_models("gemma3")  # its random weights repeat themselves
    generation: dict[str, Any] = {"max_new_tokens": 24}
    plain = load(folder, generation=generation)
    draft = {"id": str(folder), "num_assistant_tokens": 3, "assistant_confidence_threshold": 0}
    sections = {"draft": {"draft": draft}, "lookup": {"generation": generation | {"prompt_lookup_num_tokens": 4}}}[way]
    proposing = load(folder, **{"generation": generation, **sections})
    answers = list(llmctl.generate_batch(proposing, PROMPTS))
    assert [answer.text for answer in answers] == [llmctl.generate(plain, prompt).text for prompt in PROMPTS]
    for answer in answers:
        assert answer.completion is not None
        stats = answer.completion.decoding_stats
        assert stats is not None
        assert stats.forward_passes is not None
        assert stats.forward_passes < len(answer.completion.token_ids)
        assert stats.accepted_tokens == len(answer.completion.token_ids) - stats.forward_passes


def test_one_row_may_use_prompt_lookup_and_others_not(tiny_models: Tiny) -> None:
    loaded = load(tiny_models("gemma3"))
    row = {"prompt": PROMPTS[0], "generation": {"prompt_lookup_num_tokens": 4}}
    plain, looked_up, also_plain = llmctl.generate_batch(loaded, [PROMPTS[0], row, PROMPTS[0]])
    assert plain.text == looked_up.text == also_plain.text
    has_stats = [answer.completion and answer.completion.decoding_stats for answer in (plain, looked_up, also_plain)]
    assert [one is not None for one in has_stats] == [False, True, False]
