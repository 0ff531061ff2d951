"""Replay of a recorded run: the first token that differs, and the differences of this machine.

A recording is untrusted. Its values must pass the schema with its bounds. The prompt is given as token ids, so no
template or other file that the recording names is read. Python code of the model runs only if the caller trusts it, and
the model's files must have the recorded hashes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config import GenerationSection, Settings, settings_from_mapping
from llmctl.config.structure import names_a_file
from llmctl.errors import ModelError, UserError
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.media import locate_media
from llmctl.generation.overrides import with_generation
from llmctl.generation.request import make_request
from llmctl.generation.stream import stream_request
from llmctl.hub.listing import RemoteFile
from llmctl.model.demo import MODEL_ID
from llmctl.reproduce.hashes import adapter_files, is_same_file, model_files
from llmctl.reproduce.manifest import AdapterRecord, DraftRecord, Manifest, make_manifest
from llmctl.reproduce.recordings import Recording

if TYPE_CHECKING:
    from llmctl.generation.completion import Completion
    from llmctl.generation.pictures import Picture
    from llmctl.loading.model import LoadedModel
    from llmctl.loading.prepare import Prepared

_CONTEXT_TOKENS = 12
_REPLACED = ("chat", "model", "draft", "structure")  # sections that a replay does not take from the recording
_SPEED_KEYS = {"cache_implementation", "cache_config", "prompt_lookup_num_tokens"}  # resolved again from the config


@dataclass(frozen=True)
class Difference:
    """A property that differs from the recording: a version, a thread count, or a resolved argument."""

    key: str
    recorded: Any
    current: Any


@dataclass(frozen=True)
class Outcome:
    """The comparison of one recording with its replay.

    Attributes:
        index: Index of the first generated token that differs; None if all are equal.
        before: The text just before that token.
        recorded: The continuation in the recording.
        current: The continuation in the replay.
        remark: A contradiction within the recording, or None.
    """

    recording: Recording
    index: int | None = None
    before: str = ""
    recorded: str = ""
    current: str = ""
    remark: str | None = None

    @property
    def identical(self) -> bool:
        """True if tokens and text are equal."""
        return self.index is None


def loading_settings(
    manifest: Manifest,
    *,
    model: str | None = None,
    draft: str | None = None,
    trust_remote_code: bool = False,
    overcommit: bool = False,
) -> Settings:
    """Return the settings that load the model of a manifest.

    Args:
        model: Source of the model on this machine; by default, the recorded one.
        draft: Source of the draft model on this machine; by default, the recorded one.
        trust_remote_code: Allow Python code of the model to run. The manifest alone never allows it.

    Raises:
        UserError: the model needs its Python code, which is not trusted.
        ConfigError: the schema refuses a value.
    """
    if manifest.model_kwargs.get("trust_remote_code") and not trust_remote_code:
        raise UserError(
            f"{manifest.source} ran its own Python code, which a recording alone may not start",
            hint="review that code, then use llmctl replay --trust-remote-code",
        )
    values = {
        **{key: value for key, value in manifest.config.items() if key not in _REPLACED},
        "model": _model(manifest, model),
        "load": {
            **_section(manifest, "load"),
            "dtype": manifest.model_kwargs.get("dtype", "auto"),
            "overcommit": overcommit,
        },
        # load the files whose hashes are recorded, not a quantised cache; a replay writes no quantised cache either
        "quantization": {**_section(manifest, "quantization"), "cache": False},
        "generation": _generation(manifest),
        "draft": _draft(manifest, draft),
        "seed": manifest.seed,
        "deterministic": manifest.deterministic,
    }
    return settings_from_mapping(values, where="the manifest")


def _source(record: Manifest | DraftRecord | AdapterRecord, replacement: str | None) -> dict[str, Any]:
    if replacement is not None:
        return {"id": replacement}
    if record.commit is not None:
        return {"id": record.source, "revision": record.commit}
    if record.source == MODEL_ID:  # the demo model has a different folder on each machine
        return {"id": MODEL_ID}
    return {"id": record.folder or record.source}


def _section(manifest: Manifest, name: str) -> Mapping[str, Any]:
    section = manifest.config.get(name)
    return section if isinstance(section, Mapping) else {}


def _model(manifest: Manifest, replacement: str | None) -> dict[str, Any]:
    """Return the section `model`. The caller has checked that Python code of the model is trusted, if there is any."""
    return {
        **_source(manifest, replacement),
        "trust_remote_code": bool(manifest.model_kwargs.get("trust_remote_code")),
        "adapters": [{**_source(adapter, None), "scale": adapter.scale} for adapter in manifest.adapters],
        "merge_adapters": bool(_section(manifest, "model").get("merge_adapters")),
    }


def _draft(manifest: Manifest, replacement: str | None) -> dict[str, Any]:
    if manifest.draft is None:
        return {}
    dtype = manifest.draft.model_kwargs.get("dtype", "auto")
    return {**_section(manifest, "draft"), **_source(manifest.draft, replacement), "dtype": dtype}


def _generation(manifest: Manifest) -> dict[str, Any]:
    """Return the complete section `generation` as resolved in the recorded run, independent of current defaults."""
    fields = GenerationSection.model_fields.keys()
    resolved = {key: value for key, value in manifest.generation_kwargs.items() if key in fields - _SPEED_KEYS}
    defaults = GenerationSection().model_dump(mode="json")
    return {**defaults, **_section(manifest, "generation"), **resolved, "logprobs": None}


def _structure(recording: Recording) -> dict[str, Any]:
    """Return the section `structure`. Raise UserError if it names a file: a recording's files are never read."""
    values = dict(_section(recording.manifest, "structure"))
    if names_a_file(settings_from_mapping({"structure": values}, where="the manifest").config.structure):
        raise UserError(f"{recording.name}: the structure is in a file, and files named by a recording are never read")
    return values


def check_files(manifest: Manifest, prepared: "Prepared") -> None:
    """Check that the model's files are those of the manifest.

    Raises:
        ModelError: a file differs; the message names the first one.
    """
    _check_model(manifest, prepared)
    if manifest.draft is not None and prepared.draft is not None:
        _check_model(manifest.draft, prepared.draft)
    for record, adapter in zip(manifest.adapters, prepared.adapters, strict=True):
        _check_hashes(record, adapter_files(adapter), adapter.folder)


def _check_model(record: Manifest | DraftRecord, prepared: "Prepared") -> None:
    trusted = bool(prepared.plan.model_kwargs["trust_remote_code"])
    _check_hashes(record, model_files(prepared.resolved, trust_remote_code=trusted), prepared.resolved.folder)


def _check_hashes(record: Manifest | DraftRecord | AdapterRecord, files: Sequence[RemoteFile], folder: Path) -> None:
    current = {file.path: file for file in files}
    recorded = {file.path: file.as_file() for file in record.files}
    for path in sorted(current.keys() | recorded.keys()):
        if path not in current:
            difference = f"{path} is missing"
        elif path not in recorded:
            difference = f"{path} did not exist in the recorded run"
        elif not is_same_file(current[path], recorded[path], folder):
            now, then = current[path], recorded[path]
            difference = f"{path} has {now.algorithm} {now.digest[:12]}…, recorded was {then.digest[:12]}…"
        else:
            continue
        raise ModelError(
            f"the files of {record.source} are not those of the manifest: {difference}",
            hint="use the recorded model: llmctl replay --model FOLDER, or download its commit",
            details={"file": path, "folder": str(folder)},
        )


def environment_differences(manifest: Manifest, loaded: "LoadedModel") -> tuple[Difference, ...]:
    """Return every property, except the files, that differs from the recording."""
    recorded, current = _environment(manifest), _environment(make_manifest(loaded))
    keys = [*recorded, *(key for key in current if key not in recorded)]
    return tuple(
        Difference(key, recorded.get(key), current.get(key)) for key in keys if recorded.get(key) != current.get(key)
    )


def _environment(manifest: Manifest) -> dict[str, Any]:
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
    """Repeat a recorded answer with a model that was loaded with `loading_settings`, and compare both.

    Raises:
        UserError: a token of the prompt does not exist, the prompt is longer than the context, or the manifest names
            the file of a structure.
    """
    manifest = recording.manifest
    configured = with_generation(loaded, _generation(manifest), structure=_structure(recording), seed=manifest.seed)
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
    if max(recording.prompt.ids) >= vocabulary:
        raise UserError(f"{recording.name}: token {max(recording.prompt.ids)} of the prompt does not exist")
    *_, last = stream_request(configured, make_request(configured, recording.prompt, seed=recording.seed))
    assert last.completion is not None, "the last chunk carries the completion"  # noqa: S101
    return _compare(loaded, recording, last.completion)


def check_images(recordings: Sequence[Recording], pictures: "Sequence[Picture]") -> None:
    """Raise UserError if an image of a recording, which has only its hash, is not among the pictures, or none has any.

    Args:
        pictures: The pictures that the user gave.
    """
    if pictures and not any(recording.prompt.media for recording in recordings):
        raise UserError("the recording has no answer about images", hint="omit --image")
    known = {picture.sha256 for picture in pictures}
    for recording in recordings:
        media = recording.prompt.media
        for number, one in enumerate(media, 1):
            if one.sha256 not in known:
                raise UserError(
                    f"{recording.name}: a recording has only the hashes of its images, and none of the given files is "
                    f"image {number} of {len(media)} (sha256 {one.sha256[:12]}…)",
                    hint="give the same pictures: llmctl replay FILE --image cat.png",
                )


def with_images(loaded: "LoadedModel", recording: Recording, pictures: "Sequence[Picture]") -> Recording:
    """Return a recording whose prompt has its images, after `check_images`.

    Raises:
        UserError: the images are processed into another number of tokens.
    """
    media = recording.prompt.media
    if not media:
        return recording
    known = {picture.sha256: picture for picture in pictures}
    processor = LazyImageProcessor(loaded)()
    images = processor.process([known[one.sha256] for one in media])
    try:
        located = locate_media(recording.prompt.ids, images, processor.token_id)
    except ValueError as error:
        raise UserError(f"{recording.name}: its prompt does not fit its images: {error}") from error
    return replace(recording, prompt=replace(recording.prompt, media=located))


def _compare(loaded: "LoadedModel", recording: Recording, completion: "Completion") -> Outcome:
    recorded, current = recording.token_ids, completion.token_ids
    remark = _remark(recording)
    if recorded == current and recording.text == completion.text:
        return Outcome(recording, remark=remark)
    if recorded == current:
        same = next(
            (n for n, pair in enumerate(zip(recording.text, completion.text, strict=False)) if pair[0] != pair[1]), 0
        )
        return Outcome(
            recording,
            len(current),
            completion.text[:same],
            recording.text[same:][:40],
            completion.text[same:][:40],
            remark,
        )
    index = next(
        (n for n, pair in enumerate(zip(recorded, current, strict=False)) if pair[0] != pair[1]),
        min(len(recorded), len(current)),
    )

    def text(ids: Sequence[int]) -> str:
        known = [token for token in ids if token < len(loaded.tokenizer)]
        return str(loaded.tokenizer.decode(known, skip_special_tokens=False))

    return Outcome(
        recording,
        index,
        text(current[max(index - _CONTEXT_TOKENS, 0) : index]),
        text(recorded[index : index + _CONTEXT_TOKENS]),
        text(current[index : index + _CONTEXT_TOKENS]),
        remark,
    )


def _remark(recording: Recording) -> str | None:
    """Return a remark if the seed contradicts the manifest, so that it was changed after the run."""
    if recording.expected_seed in (None, recording.seed):
        return None
    return f"its seed is {recording.seed}, but according to the manifest it was {recording.expected_seed}"
