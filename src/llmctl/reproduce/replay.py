"""A recorded run again: whether it gives the same tokens, where it first does not, and what is different here.

A recording is data from somewhere. What runs is decided here, from values that pass the schema and its bounds: the
prompt is its token ids, so no template and no other file of the recording is read; its own model code never runs
unless the caller trusts it; and the model's files must be those whose hashes were recorded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config import GenerationSection, Settings, settings_from_mapping
from llmctl.config.structure import names_a_file
from llmctl.errors import ModelError, UserError
from llmctl.generation.overrides import with_generation
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request
from llmctl.hub.listing import RemoteFile
from llmctl.model.demo import MODEL_ID
from llmctl.reproduce.hashes import adapter_files, is_same, model_files
from llmctl.reproduce.manifest import AdapterRecord, DraftRecord, Manifest, make_manifest, manifest_from

if TYPE_CHECKING:
    from llmctl.generation.completion import Completion
    from llmctl.loading.model import LoadedModel
    from llmctl.loading.prepare import Prepared

MOST_BYTES = 256 << 20
_MOST_TOKENS = 10_000_000
_AROUND_TOKENS = 12
_FASTER = {"cache_implementation", "cache_config", "prompt_lookup_num_tokens"}  # resolved anew from what was asked


@dataclass(frozen=True)
class Recording:
    """One recorded answer.

    Attributes:
        name: What to call it: `answer 2`, `line 7`.
        manifest: How it was made.
        prompt_ids: The prompt.
        seed: What the random generators were seeded with.
        expected_seed: What it must have been by the manifest and the answer's number; None where that says nothing.
        token_ids: What was generated.
        text: Its text.
    """

    name: str
    manifest: Manifest
    prompt_ids: tuple[int, ...]
    seed: int
    token_ids: tuple[int, ...]
    text: str
    expected_seed: int | None = None


@dataclass(frozen=True)
class Difference:
    """Something that is not here as it was there: a version, a thread count, a resolved argument."""

    key: str
    there: Any
    here: Any


@dataclass(frozen=True)
class Outcome:
    """What became of one recording.

    Attributes:
        recording: The recording.
        index: The first generated token that is another, or None where all are the same.
        before: The text up to there, its end.
        there: How the recorded text goes on.
        here: How it went on now.
        remark: What in the recording itself does not fit together, or None.
    """

    recording: Recording
    index: int | None = None
    before: str = ""
    there: str = ""
    here: str = ""
    remark: str | None = None

    @property
    def identical(self) -> bool:
        """Whether tokens and text are the same."""
        return self.index is None


def read_recordings(file: Path) -> tuple[Recording, ...]:
    """The recordings in a file: a document of `llmctl generate --json`, or JSON Lines.

    A line is such a document, a manifest (for the lines that follow it), or a row with `prompt_ids`, `seed`,
    `token_ids`, `text` and, unless one came before, `manifest`.

    Raises:
        UserError: it cannot be read, is something else, or a value in it is out of bounds.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file} is larger than {MOST_BYTES >> 20} MiB", hint="replay it in parts")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {file}: {reason}") from error
    found = tuple(_recordings(_documents(text, file)))
    if not found:
        raise UserError(f"{file} holds no answer", hint="llmctl generate --json writes one")
    if len({recording.manifest.deterministic for recording in found}) > 1:
        raise UserError(
            f"{file}: some of these answers were made with --deterministic and some without",
            hint="a process does one or the other: replay them apart",
        )
    return found


def loading_settings(
    manifest: Manifest,
    *,
    model: str | None = None,
    draft: str | None = None,
    trust_remote_code: bool = False,
    overcommit: bool = False,
) -> Settings:
    """The settings that load the model of a manifest.

    Args:
        manifest: How it was made.
        model: Where the model is here; otherwise where it was.
        draft: The same for a draft model.
        trust_remote_code: Whether the model's own code may run. The manifest alone never makes it.
        overcommit: Load even when the RAM does not seem to suffice.

    Raises:
        UserError: the model needs its own code and that is not trusted.
        ConfigError: a value that the schema refuses.
    """
    if manifest.model_kwargs.get("trust_remote_code") and not trust_remote_code:
        raise UserError(
            f"{manifest.source} ran Python code of its own, and a recording alone does not make that run here",
            hint="read that code, then: llmctl replay --trust-remote-code",
        )
    asked = {key: value for key, value in manifest.config.items() if key not in ("chat", "model", "draft", "structure")}
    load, quantization = asked.get("load"), asked.get("quantization")
    trusted = bool(manifest.model_kwargs.get("trust_remote_code")) and trust_remote_code
    asked_model = manifest.config.get("model")
    merged = isinstance(asked_model, Mapping) and bool(asked_model.get("merge_adapters"))
    values = {
        **asked,
        "model": {
            **_where(manifest, model),
            "trust_remote_code": trusted,
            "adapters": [{**_where(adapter, None), "scale": adapter.scale} for adapter in manifest.adapters],
            "merge_adapters": merged,
        },
        "load": {
            **(load if isinstance(load, Mapping) else {}),
            "dtype": manifest.model_kwargs.get("dtype", "auto"),
            "overcommit": overcommit,
        },
        # the files whose hashes are known, not a copy made from them; and a recording leaves none on the disk
        "quantization": {**(quantization if isinstance(quantization, Mapping) else {}), "cache": False},
        "generation": _generation(manifest),
        "draft": _draft(manifest, draft),
        "seed": manifest.seed,
        "deterministic": manifest.deterministic,
    }
    return settings_from_mapping(values, where="the manifest")


def _where(record: Manifest | DraftRecord | AdapterRecord, instead: str | None) -> dict[str, Any]:
    if instead is not None:
        return {"id": instead}
    if record.commit is not None:
        return {"id": record.source, "revision": record.commit}
    if record.source == MODEL_ID:  # the copy of the small default, wherever it is here
        return {"id": MODEL_ID}
    return {"id": record.folder or record.source}


def _draft(manifest: Manifest, instead: str | None) -> dict[str, Any]:
    asked = manifest.config.get("draft")
    if manifest.draft is None:
        return {}
    dtype = manifest.draft.model_kwargs.get("dtype", "auto")
    return {**(asked if isinstance(asked, Mapping) else {}), **_where(manifest.draft, instead), "dtype": dtype}


def _generation(manifest: Manifest) -> dict[str, Any]:
    """The whole section `generation`. What was resolved then counts, whatever the defaults are today."""
    fields = GenerationSection.model_fields.keys()
    asked = manifest.config.get("generation")
    resolved = {key: value for key, value in manifest.generation_kwargs.items() if key in fields - _FASTER}
    defaults = GenerationSection().model_dump(mode="json")
    return {**defaults, **(asked if isinstance(asked, Mapping) else {}), **resolved, "logprobs": None}


def _structure(recording: Recording) -> dict[str, Any]:
    """The section `structure`, which holds a schema or a grammar itself: no file that a recording names is read."""
    asked = recording.manifest.config.get("structure")
    values = asked if isinstance(asked, dict) else {}
    if names_a_file(settings_from_mapping({"structure": values}, where="the manifest").config.structure):
        raise UserError(f"{recording.name}: the manifest names a file for its structure, and none is read for it")
    return values


def check_files(manifest: Manifest, prepared: "Prepared") -> None:
    """Refuse models whose files are not those of the manifest.

    Raises:
        ModelError: naming the first file that is another.
    """
    _check_model(manifest, prepared)
    if manifest.draft is not None and prepared.draft is not None:
        _check_model(manifest.draft, prepared.draft)
    for record, adapter in zip(manifest.adapters, prepared.adapters, strict=True):
        _check_hashes(record, adapter_files(adapter), adapter.folder)


def _check_model(record: Manifest | DraftRecord, prepared: "Prepared") -> None:
    trusted = bool(prepared.plan.model_kwargs["trust_remote_code"])
    _check_hashes(record, model_files(prepared.located, trust_remote_code=trusted), prepared.located.folder)


def _check_hashes(record: Manifest | DraftRecord | AdapterRecord, files: Sequence[RemoteFile], folder: Path) -> None:
    here = {file.path: file for file in files}
    there = {file.path: file.as_file() for file in record.files}
    for path in sorted(here.keys() | there.keys()):
        if path not in here:
            what = f"{path} is missing"
        elif path not in there:
            what = f"{path} was not there then"
        elif not is_same(here[path], there[path], folder):
            what = f"{path} has the {here[path].algorithm} {here[path].digest[:12]}…, then {there[path].digest[:12]}…"
        else:
            continue
        raise ModelError(
            f"the files of {record.source} are not those of the manifest: {what}",
            hint="take the model that was used: llmctl replay --model FOLDER, or download its commit",
            details={"file": path, "folder": str(folder)},
        )


def environment_differences(manifest: Manifest, loaded: "LoadedModel") -> tuple[Difference, ...]:
    """Everything but the files that is not here as it was there."""
    there, here = _circumstances(manifest), _circumstances(make_manifest(loaded))
    keys = [*there, *(key for key in here if key not in there)]
    return tuple(Difference(key, there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key))


def _circumstances(manifest: Manifest) -> dict[str, Any]:
    versions = {f"version of {name}": version for name, version in manifest.versions.items()}
    loading = {key: value for key, value in manifest.model_kwargs.items() if key != "device_map"}
    return {
        **versions,
        **manifest.hardware.model_dump(mode="json"),
        **loading,
        "attn_implementation": manifest.attn_implementation,
        "quantization": manifest.quantization,
        "quantized_copy": manifest.quantized_copy,
        "device_map": manifest.device_map,
        "eos_token_id": manifest.generation_kwargs.get("eos_token_id"),
    }


def replay(loaded: "LoadedModel", recording: Recording) -> Outcome:
    """Generate once more what was recorded, with a model that was loaded by `loading_settings`.

    Raises:
        UserError: a token of the prompt does not exist, the prompt is longer than the context, or the manifest names a
            file.
    """
    manifest = recording.manifest
    settled = with_generation(loaded, _generation(manifest), structure=_structure(recording), seed=manifest.seed)
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
    if max(recording.prompt_ids) >= vocabulary:
        raise UserError(f"{recording.name}: token {max(recording.prompt_ids)} of the prompt does not exist")
    *_, last = stream_request(settled, make_request(settled, recording.prompt_ids, seed=recording.seed))
    assert last.completion is not None, "the last chunk carries the completion"  # noqa: S101
    return _compare(loaded, recording, last.completion)


def _compare(loaded: "LoadedModel", recording: Recording, done: "Completion") -> Outcome:
    there, here = recording.token_ids, done.token_ids
    remark = _remark(recording)
    if there == here and recording.text == done.text:
        return Outcome(recording, remark=remark)
    if there == here:
        same = next((n for n, pair in enumerate(zip(recording.text, done.text, strict=False)) if pair[0] != pair[1]), 0)
        return Outcome(
            recording, len(here), done.text[:same], recording.text[same:][:40], done.text[same:][:40], remark
        )
    index = next(
        (n for n, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), min(len(there), len(here))
    )

    def text(ids: Sequence[int]) -> str:
        known = [token for token in ids if token < len(loaded.tokenizer)]
        return str(loaded.tokenizer.decode(known, skip_special_tokens=False))

    return Outcome(
        recording,
        index,
        text(here[max(index - _AROUND_TOKENS, 0) : index]),
        text(there[index : index + _AROUND_TOKENS]),
        text(here[index : index + _AROUND_TOKENS]),
        remark,
    )


def _remark(recording: Recording) -> str | None:
    """A seed that does not belong to its manifest was written by something other than the run."""
    if recording.expected_seed in (None, recording.seed):
        return None
    return f"its seed is {recording.seed}; by the manifest it was {recording.expected_seed}"


def _documents(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    """The JSON documents of a file, each with its name: the whole of it, or line by line."""
    try:
        yield str(file), json.loads(text)
        return
    except (ValueError, RecursionError):
        if "\n" not in text.strip():
            raise UserError(f"{file} is not JSON", hint="llmctl generate --json > FILE writes one") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{file}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}:{number} is not JSON: {error}", hint="one object a line, or one document"
            ) from None


def _recordings(documents: Iterator[tuple[str, Any]]) -> Iterator[Recording]:
    manifest: Manifest | None = None
    for where, document in documents:
        if not isinstance(document, dict):
            raise UserError(f"{where} is not a JSON object")
        if document.get("schema") == "llmctl.manifest/1":
            manifest = manifest_from(document, where=where)
            continue
        if "manifest" in document or manifest is None:
            manifest = manifest_from(document.get("manifest"), where=where)
        rows = document.get("completions", [document])
        if not isinstance(rows, list):
            raise UserError(f"{where}: completions is not a list")
        for number, row in enumerate(rows, 1):
            name = f"{where}: answer {number}" if "completions" in document else where
            expected = manifest.seed + number - 1 if "completions" in document else None
            yield _recording(name, manifest, document.get("prompt_ids"), row, expected)


def _recording(name: str, manifest: Manifest, prompt_ids: Any, row: Any, expected_seed: int | None) -> Recording:
    if not isinstance(row, dict):
        raise UserError(f"{name} is not a JSON object")
    seed, text = row.get("seed"), row.get("text")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{name}: seed must be an integer from 0 to 4294967295")
    if not isinstance(text, str):
        raise UserError(f"{name}: text must be a text")
    return Recording(
        name=name,
        manifest=manifest,
        prompt_ids=_ids(prompt_ids, f"{name}: prompt_ids"),
        seed=seed,
        token_ids=_ids(row.get("token_ids"), f"{name}: token_ids"),
        text=text,
        expected_seed=expected_seed,
    )


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_TOKENS:
        raise UserError(f"{where} must be a list of tokens that is not empty")
    if any(type(token) is not int or not 0 <= token < 2**31 for token in value):
        raise UserError(f"{where} must hold token ids, integers from 0 on")
    return tuple(value)


def loads_alike(manifest: Manifest) -> str:
    """A key that is the same for manifests whose answers one loaded model can give."""
    answering = ("chat", "generation", "seed", "structure")
    config = {key: value for key, value in manifest.config.items() if key not in answering}
    generation = manifest.config.get("generation")
    extra = generation.get("extra_eos_tokens") if isinstance(generation, Mapping) else None
    parts = [
        manifest.source,
        manifest.commit,
        manifest.folder,
        [file.model_dump() for file in manifest.files],
        config,
        manifest.model_kwargs,
        manifest.deterministic,
        manifest.draft.model_dump(mode="json") if manifest.draft else None,
        extra,
    ]
    return json.dumps(parts, sort_keys=True)
