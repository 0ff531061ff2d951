"""Addresses of the Hub that are pasted in place of a model's id."""

from pathlib import Path

import pytest

from llmctl.config import read_settings, settings_from_mapping
from llmctl.config.hub_address import id_and_revision, parse_hub_address
from llmctl.config.layers import Entry
from llmctl.errors import ConfigError, UserError

PAGE = "https://huggingface.co/acme/tiny"


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        (PAGE, None),
        (f"{PAGE}/", None),
        (f"{PAGE}?library=transformers#usage", None),
        ("http://www.huggingface.co/acme/tiny", None),
        ("huggingface.co/acme/tiny", None),
        ("https://hf.co/acme/tiny", None),
        ("hf.co/acme/tiny/tree/dev", "dev"),
        (f"{PAGE}/tree/dev/onnx", "dev"),
        (f"{PAGE}/blob/0123abc/README.md?code=true", "0123abc"),
        (f"{PAGE}/resolve/main/model.safetensors", "main"),
        (f"{PAGE}/commit/0123abc", "0123abc"),
        (f"{PAGE}/tree/refs%2Fpr%2F3", "refs/pr/3"),
        (f"{PAGE}/blob/refs/pr/3/config.json", "refs/pr/3"),
        (f"{PAGE}/discussions/7", None),
    ],
)
def test_the_address_of_a_page_means_its_model_and_revision(text: str, revision: str | None) -> None:
    assert parse_hub_address(text) == ("acme/tiny", revision)


@pytest.mark.parametrize(
    "text", ["acme/tiny", "./acme/tiny", "/models/acme/tiny", "~/models/tiny", "models/a/b", "gpt2"]
)
def test_ids_and_folders_are_no_addresses(text: str) -> None:
    assert parse_hub_address(text) is None
    assert id_and_revision(text, "dev") == (text, "dev")


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/acme/tiny",
        "https://huggingface.co/spaces/acme/tiny",
        "https://huggingface.co/acme",
        "https://example.com/acme/tiny",
        f"{PAGE}/unknown/page",
        f"{PAGE}-GGUF/blob/main/tiny-Q4_K_M.gguf",
        "hf.co/acme/tiny-GGUF:Q4_K_M",
    ],
)
def test_other_addresses_are_refused_with_an_example_or_a_way_out(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_hub_address(text)
    assert text in refused.value.message
    assert refused.value.hint


def test_an_endpoint_of_ones_own_has_addresses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8443/hub")
    assert parse_hub_address("https://mirror.example:8443/hub/acme/tiny/tree/dev") == ("acme/tiny", "dev")


def test_every_layer_takes_addresses(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        f"model: {{id: '{PAGE}/tree/dev', adapters: ['hf.co/acme/lora/tree/v2']}}\ndraft: {{id: '{PAGE}'}}\n"
    )
    read = read_settings(config=file, environ={}, folder=tmp_path).config
    assert (read.model.id, read.model.revision, read.draft.id) == ("acme/tiny", "dev", "acme/tiny")
    assert [(one.id, one.revision) for one in read.model.adapters] == [("acme/lora", "v2")]
    read = read_settings(config=file, environ={"LLMCTL_MODEL": "hf.co/acme/other"}, folder=tmp_path).config
    assert (read.model.id, read.model.revision) == ("acme/other", None), "the revision belongs to the other model"
    flags = {"model.revision": Entry("v3", "--revision")}
    read = read_settings(config=file, flags=flags, environ={}, folder=tmp_path).config
    assert (read.model.id, read.model.revision) == ("acme/tiny", "v3"), "a higher layer replaces the revision"


def test_an_address_and_another_revision_in_one_layer_contradict_each_other() -> None:
    with pytest.raises(ConfigError) as refused:
        settings_from_mapping({"model": {"id": f"{PAGE}/tree/dev", "revision": "main"}})
    assert [problem.key for problem in refused.value.problems] == ["model.revision"]
    same = settings_from_mapping({"model": {"id": f"{PAGE}/tree/dev", "revision": "dev"}}).config
    assert (same.model.id, same.model.revision) == ("acme/tiny", "dev")
    with pytest.raises(UserError, match="dev"):
        id_and_revision(f"{PAGE}/tree/dev", "main")


def test_a_wrong_address_is_a_problem_of_its_key() -> None:
    with pytest.raises(ConfigError) as refused:
        settings_from_mapping({"model": {"id": "https://example.com/acme/tiny"}, "draft": {"id": "hf.co/datasets/a/b"}})
    assert [problem.key for problem in refused.value.problems] == ["model.id", "draft.id"]
