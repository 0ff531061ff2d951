"""Files that cannot be trusted are refused before anything is read from them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.errors import ModelError
from llmctl.model.info import ModelInfo, read_model_info
from support.tiny import edit_json

Copy = Callable[..., Path]


def with_index(folder: Path, *targets: str) -> Path:
    """Give the model an index that maps its tensors to `targets` in turn."""
    weights = folder / "model.safetensors"
    if weights.exists():
        weights.rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": {f"w{n}": target for n, target in enumerate(targets)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_facts_of_a_model_are_read_from_its_files(tiny_models: Copy) -> None:
    info = read_model_info(tiny_models("llama"))
    assert (info.model_type, info.layer_count, info.head_dim, info.context_length) == ("llama", 2, 16, 256)
    assert info.stored_dtype == "bfloat16"
    assert info.size_bytes == 2 * info.parameters
    assert info.has_chat_template
    assert info.stored_quantization is None


@pytest.mark.parametrize("key", ["n_positions", "max_seq_len", "model_max_length", "seq_length"])
def test_the_context_length_is_found_under_the_names_of_every_family(key: str) -> None:
    assert ModelInfo("acme/other", {"model_type": "mpt", key: 2048}, ()).context_length == 2048


@pytest.mark.parametrize(
    "target", ["../outside.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x.safetensors"]
)
def test_an_index_that_points_outside_is_refused(target: str, tiny_copy: Copy) -> None:
    folder = with_index(tiny_copy(), target)
    (folder.parent / "outside.safetensors").write_bytes((folder / "part.safetensors").read_bytes())
    with pytest.raises(ModelError, match="points outside its folder"):
        read_model_info(folder)


def test_an_index_that_names_a_pickle_is_refused(tiny_copy: Copy) -> None:
    folder = with_index(tiny_copy(), "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelError, match=r"names 'pytorch_model\.bin', which is not safetensors"):
        read_model_info(folder)


def test_a_link_that_leads_outside_is_refused(tiny_copy: Copy, tmp_path: Path) -> None:
    folder = tiny_copy()
    secret = tmp_path / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(secret)
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(ModelError, match="a link that leads outside"):
        read_model_info(folder)


def test_the_links_of_the_hub_cache_are_followed(tiny_copy: Copy, tmp_path: Path) -> None:
    folder, repo = tiny_copy(), tmp_path / "models--acme--tiny"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots").mkdir()
    (folder / "model.safetensors").rename(repo / "blobs" / "abc")
    folder.rename(repo / "snapshots" / "c0ffee")
    (repo / "snapshots" / "c0ffee" / "model.safetensors").symlink_to("../../blobs/abc")
    assert read_model_info(repo / "snapshots" / "c0ffee").parameters > 0


def test_a_folder_with_only_pickles_names_them(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only as pickles \(pytorch_model\.bin\)"):
        read_model_info(folder)


def test_missing_shards_are_named(tiny_copy: Copy) -> None:
    folder = with_index(tiny_copy(), "part.safetensors", "part-2.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 of its 2 weight files: part-2\.safetensors"):
        read_model_info(folder)


def test_a_truncated_file_is_detected_from_its_header(tiny_copy: Copy) -> None:
    file = tiny_copy() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is truncated"):
        read_model_info(file.parent)


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_a_file_that_is_not_safetensors_is_refused(content: bytes, tiny_copy: Copy) -> None:
    file = tiny_copy() / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="safetensors"):
        read_model_info(file.parent)


def test_a_header_whose_sizes_contradict_each_other_is_refused(tiny_copy: Copy) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10, 10], "data_offsets": [0, 40]}}).encode()
    file = tiny_copy() / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(40))
    with pytest.raises(ModelError, match="cannot be 40 bytes"):
        read_model_info(file.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**7), ("hidden_size", -1), ("vocab_size", "many"), ("num_attention_heads", True)],
)
def test_an_absurd_configuration_is_refused_before_anything_is_built(key: str, value: object, tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(ModelError, match=f"{key} is"):
        read_model_info(folder)


def test_more_layers_in_the_configuration_than_in_the_weights_are_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", num_hidden_layers=500)
    with pytest.raises(ModelError, match="says 500 layers, the weights have 2"):
        read_model_info(folder)


def test_passes_through_the_same_blocks_are_no_missing_layers(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    edit_json(folder / "config.json", num_hidden_layers=8, n_recurrent_loops=4)
    assert read_model_info(folder).layer_count == 8
    edit_json(folder / "config.json", num_hidden_layers=7)
    with pytest.raises(ModelError, match="says 7 layers, the weights have 2"):
        read_model_info(folder)


def test_a_configuration_that_is_not_json_is_refused(tiny_copy: Copy) -> None:
    folder = tiny_copy()
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="not valid JSON"):
        read_model_info(folder)
