"""Recorded answers from a file. The file is untrusted: every value is checked."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import UserError
from llmctl.generation.media import media_from
from llmctl.generation.prompt import Prompt
from llmctl.reproduce.manifest import Manifest, manifest_from
from llmctl.text_files import NotTextError, read_text, reason

MAX_FILE_BYTES = 256 << 20
_MAX_TOKENS = 10_000_000


@dataclass(frozen=True)
class Recording:
    """One recorded answer.

    Attributes:
        name: Name for messages: `answer 2`, `line 7`.
        manifest: Manifest of its run.
        seed: Seed of the random generators.
        expected_seed: Seed according to the manifest and the answer's number; None if they do not determine it.
        token_ids: Generated tokens.
        text: Generated text.
    """

    name: str
    manifest: Manifest
    prompt: Prompt
    seed: int
    token_ids: tuple[int, ...]
    text: str
    expected_seed: int | None = None


def read_recordings(file: Path) -> tuple[Recording, ...]:
    """Return the recordings in a file: a document of `llmctl generate --json`, or JSON Lines.

    Each line is such a document, a manifest for the lines after it, or a row with `prompt_ids`, `seed`, `token_ids`,
    `text`, and `manifest`, which may be omitted after a line with a manifest.

    Raises:
        UserError: the file cannot be read or has another format, or a value in it is out of bounds.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB", hint="replay it in parts")
        text = read_text(file)
    except (OSError, NotTextError) as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error
    recordings = tuple(_recordings(_documents(text, file)))
    if not recordings:
        raise UserError(f"{file} has no answers", hint="llmctl generate --json writes one")
    if len({recording.manifest.deterministic for recording in recordings}) > 1:
        raise UserError(
            f"{file}: some of these answers were made with --deterministic and some without",
            hint="one process cannot do both: replay them separately",
        )
    return recordings


def loading_key(manifest: Manifest) -> str:
    """Return a key. Manifests with equal keys can be replayed with the same loaded model."""
    answer_sections = ("chat", "generation", "seed", "structure")
    config = {key: value for key, value in manifest.config.items() if key not in answer_sections}
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


def _documents(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the JSON documents of a file with their names: one for the whole file, or one per line."""
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
                f"{file}:{number} is not JSON: {error}", hint="one object per line, or one document"
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
            is_counted = "completions" in document and manifest.seed is not None
            expected = ((manifest.seed or 0) + number - 1) % 2**32 if is_counted else None
            yield _recording(name, manifest, _prompt(name, document), row, expected)


def _recording(name: str, manifest: Manifest, prompt: Prompt, row: Any, expected_seed: int | None) -> Recording:
    if not isinstance(row, dict):
        raise UserError(f"{name} is not a JSON object")
    seed, text = row.get("seed"), row.get("text")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{name}: seed must be an integer from 0 to 4294967295")
    if not isinstance(text, str):
        raise UserError(f"{name}: text must be a string")
    return Recording(
        name=name,
        manifest=manifest,
        prompt=prompt,
        seed=seed,
        token_ids=_ids(row.get("token_ids"), f"{name}: token_ids"),
        text=text,
        expected_seed=expected_seed,
    )


def _prompt(name: str, document: Mapping[str, Any]) -> Prompt:
    """Return the prompt in a document with the values of `Prompt.document`."""
    try:
        media = media_from(document.get("prompt_media", []))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    templated, prefill = document.get("prompt_templated") is True, document.get("prompt_prefill", "")
    if not isinstance(prefill, str):
        raise UserError(f"{name}: prompt_prefill must be a string")
    ids = _ids(document.get("prompt_ids"), f"{name}: prompt_ids")
    return Prompt(ids, media, document.get("prompt_is_open") is True, templated, prefill)


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_TOKENS:
        raise UserError(f"{where} must be a non-empty list of tokens")
    if any(type(token) is not int or not 0 <= token < 2**31 for token in value):
        raise UserError(f"{where} must hold token ids, integers of at least 0")
    return tuple(value)
