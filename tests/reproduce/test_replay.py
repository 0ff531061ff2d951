"""Replays of recordings: identical, or with the first difference named; and nothing in a recording is trusted."""

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llmctl
from llmctl.cli._image_input import PromptInput
from llmctl.cli.generate import document
from llmctl.cli.main import main
from llmctl.errors import LlmctlError
from llmctl.generation.overrides import with_generation
from llmctl.generation.stream import generate_many
from llmctl.model.resolve import ResolvedModel
from llmctl.reproduce.hashes import model_files, unknown_bytes
from llmctl.reproduce.recordings import read_recordings
from llmctl.reproduce.replay import environment_differences

Tiny = Callable[[str], Path]
Run = Callable[..., SimpleNamespace]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"temperature": 1.0, "top_p": 0.7},
    {"do_sample": True, "top_k": 5, "min_p": 0.01},
    {"repetition_penalty": 1.5, "temperature": 2.0},
    {"num_beams": 3},
    {"stop_strings": [" "], "temperature": 1.2},
    {"no_repeat_ngram_size": 2, "logprobs": 2, "prompt_lookup_num_tokens": 3},
]


def record(loaded: llmctl.LoadedModel, *, count: int = 1, seed: int = 42, **generation: Any) -> dict[str, Any]:
    """Return the document of `llmctl generate --json`."""
    settled = with_generation(loaded, {"max_new_tokens": 10, **generation}, seed=seed)
    completions = []
    for chunks in generate_many(settled, "the capital of france", count=count):
        completions += [chunk.completion for chunk in chunks if chunk.completion is not None]
    return {"schema": "llmctl.generate/1", **document(settled, PromptInput("the capital of france"), completions)}


@pytest.fixture(scope="module")
def loaded(tiny_models: Tiny) -> llmctl.LoadedModel:
    return llmctl.load(tiny_models("llama"))


@pytest.fixture(scope="module")
def _sampled(loaded: llmctl.LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMCTL_HOME", str(tmp_path_factory.mktemp("home")))
        return record(loaded, temperature=1.5, count=2)


@pytest.fixture
def sampled(_sampled: dict[str, Any]) -> dict[str, Any]:
    """Return a recording of two sampled answers, to change."""
    return copy.deepcopy(_sampled)


@pytest.fixture
def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `llmctl replay` on documents, one per line, in this process."""

    def command(*documents: Any, arguments: tuple[str, ...] = ()) -> SimpleNamespace:
        file = tmp_path / "run.jsonl"
        file.write_text("\n".join(d if isinstance(d, str) else json.dumps(d) for d in documents), encoding="utf-8")
        capsys.readouterr()
        code = main(["replay", str(file), *arguments])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err, file=file)

    return command


def test_twenty_recordings_of_every_kind_are_identical(tiny_models: Tiny, replay: Run) -> None:
    documents = []
    for architecture in ("llama", "gemma3"):
        model = llmctl.load(tiny_models(architecture))
        documents += [record(model, seed=7 + n, **settings) for n, settings in enumerate(SETTINGS)]
    documents += [record(llmctl.load(tiny_models("llama"), quantization={"bits": 4}), temperature=t) for t in (0, 1.5)]
    documents += [record(llmctl.load(tiny_models("qwen3_moe")), temperature=t) for t in (0, 1.5)]
    done = replay(*documents)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": identical, ") == len(documents) == 20
    assert "20 of 20 identical" in done.stderr
    assert "differences of this machine" not in done.stderr


def test_deterministic_recordings_are_replayed_deterministically_and_separately(
    tiny_models: Tiny, sampled: dict[str, Any], replay: Run
) -> None:
    import torch

    try:
        recorded = record(llmctl.load(tiny_models("llama"), deterministic=True), temperature=1.5)
        torch.use_deterministic_algorithms(False)
        assert replay(recorded).returncode == 0
        assert torch.are_deterministic_algorithms_enabled()
        assert "some of these answers were made with --deterministic" in replay(recorded, sampled).stderr
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_changed_seed_is_found_at_the_first_different_token(
    sampled: dict[str, Any], loaded: llmctl.LoadedModel, replay: Run
) -> None:
    other = record(loaded, temperature=1.5, seed=99)["completions"][0]["token_ids"]
    there = sampled["completions"][1]["token_ids"]
    first = next(n for n, pair in enumerate(zip(there, other, strict=False)) if pair[0] != pair[1])
    sampled["completions"][1]["seed"] = 99
    done = replay(sampled)
    assert done.returncode == 1
    assert f"answer 1: identical, {len(sampled['completions'][0]['token_ids'])} tokens" in done.stdout
    assert f"answer 2: different from token {first} on, of {len(there)}" in done.stdout
    assert repr(loaded.tokenizer.decode(there[first:])) in done.stdout
    assert repr(loaded.tokenizer.decode(other[first:])) in done.stdout
    assert "answer 2: its seed is 99, but according to the manifest it was 43" in done.stderr
    assert "1 of 2 identical" in done.stderr


def test_a_seed_that_was_changed_consistently_is_still_found(sampled: dict[str, Any], replay: Run) -> None:
    sampled["manifest"]["seed"] = 99
    sampled["completions"][0]["seed"] = 99
    del sampled["completions"][1]
    found = json.loads(replay(sampled, arguments=("--json",)).stdout)
    assert found["identical"] is False
    [answer] = found["answers"]
    assert answer["then"] != answer["now"]
    assert "remark" not in answer
    assert found["environment"] == []


def test_differences_of_this_machine_are_named(sampled: dict[str, Any], replay: Run) -> None:
    sampled["manifest"]["versions"] |= {"torch": "1.0.0"}
    sampled["manifest"]["hardware"] |= {"threads": 77, "cpu": "Abacus"}
    done = replay(sampled)
    assert done.returncode == 0, "another version is no difference where the tokens are the same"
    assert "version of torch: then 1.0.0, now " in done.stderr
    assert "threads: then 77, now " in done.stderr
    assert "cpu: then Abacus, now " in done.stderr


def test_a_replay_uses_the_recorded_number_of_threads(sampled: dict[str, Any], replay: Run) -> None:
    import torch

    before = torch.get_num_threads()
    many = os.cpu_count() or 1
    sampled["manifest"]["hardware"]["threads"] = many
    try:
        assert "threads" not in replay(sampled).stderr
        assert torch.get_num_threads() == many
    finally:
        torch.set_num_threads(before)


def test_a_model_with_different_files_is_refused_before_loading(
    tiny_copy: Callable[..., Path], replay: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_copy()
    recorded = record(llmctl.load(folder))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr("llmctl.loading.loader.load_prepared", lambda _: pytest.fail("it was loaded"))
    done = replay(recorded)
    assert done.returncode == 2
    assert "are not those of the manifest: model.safetensors has sha256 " in done.stderr
    (folder / "generation_config.json").unlink()
    assert "generation_config.json is missing" in replay(recorded).stderr


def test_a_draft_model_is_loaded_again_and_its_files_are_checked(
    tiny_models: Tiny, tiny_copy: Callable[..., Path], replay: Run
) -> None:
    folder = tiny_copy()
    recorded = record(llmctl.load(tiny_models("llama"), draft={"id": str(folder)}), temperature=1.5)
    assert replay(recorded).returncode == 0
    config = folder / "generation_config.json"
    config.write_text(config.read_text() + " ")
    assert f"the files of {folder} are not those of the manifest: generation_config.json has" in replay(recorded).stderr
    assert replay(recorded, arguments=("--draft", str(tiny_models("llama")))).returncode == 0


def test_a_copy_of_the_model_in_another_folder_can_be_used(
    loaded: llmctl.LoadedModel, tiny_copy: Callable[..., Path], replay: Run
) -> None:
    recorded = record(loaded, temperature=1.5)
    recorded["manifest"]["source"] = recorded["manifest"]["folder"] = "/nowhere/model"
    assert "there is no folder /nowhere/model" in replay(recorded).stderr
    assert replay(recorded, arguments=("--model", str(tiny_copy()))).returncode == 0


def test_a_relative_model_folder_is_found_from_another_folder(
    tiny_models: Tiny, replay: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tiny_models("llama")
    monkeypatch.chdir(folder.parent.parent)
    recorded = record(llmctl.load(f"{folder.parent.name}/{folder.name}"))
    monkeypatch.chdir(tmp_path)
    assert replay(recorded).returncode == 0


def test_rows_use_the_manifest_before_them(sampled: dict[str, Any], replay: Run) -> None:
    rows = [{"prompt_ids": sampled["prompt_ids"], **answer} for answer in sampled["completions"]]
    done = replay(sampled["manifest"], *rows)
    assert done.returncode == 0
    assert f"{done.file}:3: identical" in done.stdout


def test_settings_of_one_recording_do_not_affect_the_next(loaded: llmctl.LoadedModel, replay: Run) -> None:
    penalised = record(loaded, repetition_penalty=3.0, no_repeat_ngram_size=1, stop_strings=["a"])
    assert replay(penalised, record(loaded), penalised).returncode == 0


def test_no_file_that_a_recording_names_is_read(sampled: dict[str, Any], replay: Run, tmp_path: Path) -> None:
    sampled["manifest"]["config"]["chat"] = {"template": str(tmp_path / "secret"), "system": "x"}
    assert replay(sampled).returncode == 0, "the prompt is its ids"
    sampled["manifest"]["config"]["structure"] = {"json_schema": str(tmp_path / "secret")}
    done = replay(sampled)
    assert done.returncode == 2
    assert "the structure is in a file" in done.stderr


def test_a_structure_is_replayed_without_its_file(loaded: llmctl.LoadedModel, replay: Run, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array", "items": {"type": "integer"}, "minItems": 3}')
    structured = with_generation(loaded, {}, structure={"json_schema": str(file)})
    recorded = record(structured, temperature=1.5)
    file.unlink()
    assert replay(recorded, record(loaded), recorded).returncode == 0


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("manifest", "files", 0, "path", to="../config.json"), "files.0.path"),
        (_set("manifest", "files", 0, "path", to="/etc/passwd"), "files.0.path"),
        (_set("manifest", "files", 0, "digest", to="x"), "files.0.digest"),
        (_set("manifest", "files", to=[]), "files"),
        (_set("manifest", "extra", to=1), "extra"),
        (
            _set("manifest", "schema", to="llmctl.manifest/2"),
            "has no manifest of the form llmctl.manifest/1",
        ),
        (_set("manifest", "commit", to="main"), "commit"),
        (_set("manifest", "config", "load", to={"device_map": "disk"}), "load.device_map: use auto"),
        (_set("manifest", "config", "plugins", to=["x"]), "plugins: unknown"),
        (_set("manifest", "generation_kwargs", "max_new_tokens", to=10**12), "must be at most 1000000"),
        (_set("manifest", "model_kwargs", "dtype", to="os.system"), "load.dtype: must be one of"),
        (_set("manifest", "model_kwargs", "trust_remote_code", to=True), "may not start"),
        (_set("prompt_ids", 0, to=-1), "prompt_ids must hold token ids"),
        (_set("prompt_ids", 0, to=10**6), "token 1000000 of the prompt does not exist"),
        (_set("prompt_ids", to=[1] * 300), "the prompt has 300 tokens, the context of"),
        (_set("prompt_ids", to=[]), "prompt_ids must be a non-empty list of tokens"),
        (_set("completions", 0, "seed", to=True), "seed must be an integer from 0"),
        (_set("completions", 0, "token_ids", to="abc"), "token_ids must be a non-empty list"),
        (_set("completions", 0, "text", to=None), "text must be a string"),
        (_set("completions", to=3), "completions is not a list"),
        (_set("completions", to=[]), "has no answers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "change",
)
def test_forbidden_values_in_a_recording_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, sampled: dict[str, Any], replay: Run
) -> None:
    change(sampled)
    done = replay(sampled)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "3", '{"a": 1}\n{', '{"a": 1}'])
def test_a_file_that_is_not_a_recording_is_refused(text: str, replay: Run) -> None:
    assert replay(text).returncode == 2


def test_nothing_is_downloaded_for_a_recording(sampled: dict[str, Any], replay: Run) -> None:
    sampled["manifest"] |= {"source": "acme/model", "commit": "a" * 40}
    done = replay(sampled)
    assert done.returncode == 4
    assert "llmctl download acme/model" in done.stderr


def test_a_folder_is_hashed_again_only_if_a_file_changes(
    tiny_copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_copy()
    resolved = ResolvedModel(str(folder), folder, None, "")
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    assert unknown_bytes(resolved) > 100_000
    first = model_files(resolved)
    names = {file.path: file.digest for file in first}
    assert names["config.json"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was hashed again"))
        assert model_files(resolved) == first
    assert unknown_bytes(resolved) == 0
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("256", "257"))
    assert unknown_bytes(resolved) == len(text)
    changed = {file.path for file, before in zip(model_files(resolved), first, strict=True) if file != before}
    assert changed == {"config.json"}


def test_the_hash_of_a_file_that_changed_just_now_is_not_stored(tiny_copy: Callable[..., Path]) -> None:
    resolved = ResolvedModel("x", tiny_copy(), None, "")
    model_files(resolved)
    assert unknown_bytes(resolved) > 0


def test_files_in_the_hub_cache_are_identified_by_their_blob_names(
    tiny_models: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "hf-home" / "hub" / "models--acme--tiny"
    folder = repo / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    expected = {}
    for number, file in enumerate(sorted(tiny_models("llama").iterdir())):
        blob = repo / "blobs" / (f"{number:064x}" if file.suffix == ".safetensors" else f"{number:040x}")
        blob.write_bytes(file.read_bytes())
        (folder / file.name).symlink_to(blob)
        expected[file.name] = (len(file.read_bytes()), blob.name)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    found = model_files(ResolvedModel("acme/tiny", folder, "a" * 40, ""))
    assert {file.path: (file.size_bytes, file.digest) for file in found} == expected
    assert {file.algorithm for file in found} == {"sha256", "git_sha1"}


@pytest.mark.smollm
def test_a_real_run_is_replayed(smollm: Path, replay: Run) -> None:
    loaded = llmctl.load(smollm)
    documents = [record(loaded), record(loaded, temperature=0.9)]
    [first, *_] = read_recordings(replay(*documents).file)
    assert replay(*documents).returncode == 0
    assert environment_differences(first.manifest, loaded) == ()


def test_every_refusal_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(LlmctlError, match=r"cannot read .*: No such file"):
        read_recordings(tmp_path / "missing.json")
