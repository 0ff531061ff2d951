"""Names of models that are neither a folder nor a Hub id."""

from pathlib import Path

import pytest

from llmctl.config import settings_from_mapping
from llmctl.errors import LlmctlError, ModelError, UserError
from llmctl.model.resolve import preview_model, resolve_adapters, resolve_model


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "tiny-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    return file


def errors_of(name: str) -> list[LlmctlError]:
    """The error of each function that takes the name of a model or an adapter."""
    settings = settings_from_mapping({"model": {"id": name}})
    adapters = settings_from_mapping({"model": {"adapters": [name]}}).config
    errors = []
    for function, subject in ((resolve_model, settings), (preview_model, settings), (resolve_adapters, adapters)):
        with pytest.raises(LlmctlError) as caught:
            function(subject, offline=True)  # type: ignore[operator]
        errors.append(caught.value)
    return errors


def test_a_gguf_file_is_named_as_such_wherever_a_model_can_be_named(gguf: Path) -> None:
    for name in (str(gguf), "absent.gguf", "acme/tiny/tiny-Q4_K_M.gguf", "acme/tiny.GGUF", "acme/tiny:Q4_K_M"):
        for error in errors_of(name):
            assert type(error) is ModelError, name
            assert "GGUF" in error.message
            assert "safetensors original" in str(error.hint)


def test_a_folder_with_only_gguf_files_is_named_as_such(gguf: Path) -> None:
    (gguf.parent / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="GGUF"):
        preview_model(settings_from_mapping({"model": {"id": str(gguf.parent)}}), offline=True)


def test_another_file_leads_to_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for error in errors_of(str(file)):
        assert type(error) is UserError
        assert str(tmp_path) in str(error.hint)
