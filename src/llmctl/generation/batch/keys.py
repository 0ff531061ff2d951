"""Short hashes of everything that decides an answer: a row whose key has an answer is not answered again.

A key is `ROW-SETTINGS-MODEL`: the content of the row; the settings of the run; the model with its dtype and
quantisation. So a file of answers shows whether it was made with the current settings and model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.config.structure import written_out
from llmctl.generation.batch.rows import Row
from llmctl.generation.prompt import media_document, template_text
from llmctl.reproduce.hashes import adapter_files, model_files

if TYPE_CHECKING:
    from llmctl.loading.model import PromptModel
    from llmctl.loading.prepare import Prepared

ROW_DIGITS, SETTINGS_DIGITS, MODEL_DIGITS = 16, 8, 8
# keys of `generation` whose effect is in the plan's arguments, where a default and its explicit value are equal
_IN_ARGUMENTS = {
    "max_new_tokens", "do_sample", "num_beams", "temperature", "top_k", "top_p", "min_p", "typical_p",
    "repetition_penalty", "no_repeat_ngram_size",
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


def identity(of: "Prepared | PromptModel", *, engine: Mapping[str, Any] | None = None) -> Identity:
    """Return the identity of a run. The files of a local folder are hashed once; a Hub model is known by its commit.

    Args:
        engine: The engine in place of transformers, with its settings.

    Raises:
        OSError: a file of the model cannot be read.
    """
    plan, config = of.plan, of.config
    chat = config.chat.model_dump(mode="json") | {"template": template_text(config.chat)}
    settings = {
        "arguments": dict(plan.generation_kwargs),
        "generation": config.generation.model_dump(mode="json", exclude=_IN_ARGUMENTS, exclude_defaults=True),
        "chat": chat,
        "seed": plan.seed,
        "context": config.tokenizer.model_max_length,
    }
    if structure := written_out(config.structure).model_dump(mode="json", exclude_none=True):
        settings["structure"] = json.dumps(structure)  # as text: the order of properties counts
    arguments = plan.model_kwargs
    model = {
        "files": of.resolved.commit or [(file.path, file.digest) for file in model_files(of.resolved)],
        "dtype": arguments.get("dtype"),
        "attn_implementation": arguments.get("attn_implementation"),
        "quantization": dict(plan.quantization.arguments) if plan.quantization and plan.quantizes else None,
    }
    if of.adapters:
        model["adapters"] = [
            (one.commit or [(file.path, file.digest) for file in adapter_files(one)], one.scale) for one in of.adapters
        ]
    if engine is not None:
        model["engine"] = dict(engine)
    return Identity(_hash(settings, SETTINGS_DIGITS), _hash(model, MODEL_DIGITS))


def row_key(row: Row, run: Identity) -> str:
    """Return the key of a row. Equal prompts and settings have equal keys; the id and other fields do not count."""
    settings = dict(row.settings)
    if "structure" in settings:
        settings["structure"] = json.dumps(settings["structure"])
    content: dict[str, Any] = {"prompt": row.prompt, "settings": settings}
    if row.media:
        content["media"] = media_document(row.media)
    return f"{_hash(content, ROW_DIGITS)}-{run.settings}-{run.model}"


def _hash(value: Any, digits: int) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
