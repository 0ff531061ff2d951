"""Keys: short hashes of everything that determines an answer. A row whose key has an answer is not answered again.

A key is `ROW-SETTINGS-MODEL`: hashes of the content of the row, of the settings of the run, and of the model with its
dtype and quantisation. An output file therefore shows if it was made with the current settings and model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.config.structure import written_out
from llmctl.generation.batch.rows import Row
from llmctl.generation.media import media_document, without_pictures
from llmctl.generation.prompt import template_text
from llmctl.reproduce.hashes import adapter_files, model_files

if TYPE_CHECKING:
    from llmctl.loading.model import PromptModel
    from llmctl.loading.prepare import Prepared

ROW_DIGITS, SETTINGS_DIGITS, MODEL_DIGITS = 16, 8, 8
# keys of `generation` that the plan's arguments include: there, a default equals its explicit value
_IN_ARGUMENTS = {
    "max_new_tokens", "do_sample", "num_beams", "temperature", "top_k", "top_p", "min_p", "typical_p",
    "repetition_penalty", "no_repeat_ngram_size", "stop_strings",
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """The part of a key that all rows of a run share.

    Attributes:
        settings: Hash of the settings.
        model: Hash of the model, its dtype and quantisation.
    """

    settings: str
    model: str


def identity(prepared: "Prepared | PromptModel", *, engine: Mapping[str, Any] | None = None) -> Identity:
    """Return the identity of a run. A local model is identified by hashes of its files, a Hub model by its commit.

    Args:
        engine: The name and settings of an engine other than transformers.

    Raises:
        OSError: a file of the model cannot be read.
    """
    plan, config = prepared.plan, prepared.config
    chat = config.chat.model_dump(mode="json") | {"template": template_text(config.chat)}
    settings: dict[str, Any] = {
        "arguments": dict(plan.generation_kwargs),
        "generation": {
            **config.generation.model_dump(mode="json", exclude=_IN_ARGUMENTS, exclude_defaults=True),
            **({"stop_strings": list(plan.generation.stop_strings)} if plan.generation.stop_strings else {}),
        },
        "chat": chat,
        "seed": plan.seed,
        "context": config.tokenizer.model_max_length,
    }
    if tokenizer := config.tokenizer.model_dump(include={"source", "fix_mistral_regex"}, exclude_defaults=True):
        settings["tokenizer"] = tokenizer
    if structure := written_out(config.structure).model_dump(mode="json", exclude_none=True):
        settings["structure"] = json.dumps(structure)  # as text, since the order of properties matters
    arguments = plan.model_kwargs
    model = {
        "files": prepared.resolved.commit or [(file.path, file.digest) for file in model_files(prepared.resolved)],
        "dtype": arguments.get("dtype"),
        "attn_implementation": arguments.get("attn_implementation"),
        "quantization": dict(plan.quantization.arguments) if plan.quantization and plan.quantizes else None,
    }
    if prepared.adapters:
        model["adapters"] = [
            (one.commit or [(file.path, file.digest) for file in adapter_files(one)], one.scale)
            for one in prepared.adapters
        ]
    if engine is not None:
        model["engine"] = dict(engine)
    return Identity(_hash(settings, SETTINGS_DIGITS), _hash(model, MODEL_DIGITS))


def row_key(row: Row, run: Identity) -> str:
    """Return the key of a row. It depends on the prompt, the content of its images, and the settings.

    The id, other fields and the names of images have no influence.
    """
    settings = dict(row.settings)
    if "structure" in settings:
        settings["structure"] = json.dumps(settings["structure"])
    content: dict[str, Any] = {"prompt": without_pictures(row.prompt), "settings": settings}
    if row.media:
        content["media"] = media_document(row.media)
    return f"{_hash(content, ROW_DIGITS)}-{run.settings}-{run.model}"


def _hash(value: Any, digits: int) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
