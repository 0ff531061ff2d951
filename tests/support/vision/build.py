"""Builds tiny random checkpoints with their real processors, as Hub repositories would hold them."""

import json
from pathlib import Path
from typing import Any

from support.architectures.build import make_config, randomize
from support.tiny import write_tokenizer
from support.vision.families import FAMILIES, Family

_TRAINED_TOKENS = 262  # three tokens more than the bytes and the control tokens: the rest is for images
_END = "<|endoftext|>"


def build(name: str, folder: Path) -> Path:
    """Write a checkpoint of a family in float32, with its tokenizer and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText

    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _write_tokenizer(folder, family)
    _write_processor(folder, family)
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in family.ids.items()}
    config = make_config(name, _config_changes(family) | ids)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    randomize(model)
    _sharpen(model, family.query_factor)
    _shrink_scaled_embeddings(model)
    _never_generate(model, [tokenizer.eos_token_id, *ids.values(), *range(len(tokenizer), family.vocabulary)])
    model.save_pretrained(str(folder))
    return folder


def _config_changes(family: Family) -> dict[str, Any]:
    text = {"vocab_size": family.vocabulary, **family.config.get("text_config", {})}
    return {**family.config, "text_config": text}


def _write_tokenizer(folder: Path, family: Family) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    write_tokenizer(folder, template=family.template, size=_TRAINED_TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token=_END, extra_special_tokens=dict(family.named_tokens))
    tokens = dict.fromkeys((*family.ids.values(), *family.tokens))
    others = [token for token in tokens if token not in family.named_tokens.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    if family.adds_bos:
        end = (_END, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{_END} $A", special_tokens=[end])
    tokenizer.save_pretrained(folder)
    if len(tokenizer) > family.vocabulary:
        raise ValueError(f"{len(tokenizer)} tokens do not fit into a vocabulary of {family.vocabulary}")
    return tokenizer


def _write_processor(folder: Path, family: Family) -> None:
    image = {"image_processor_type": family.image_processor, **family.image_settings}
    own = {"processor_class": family.processor, **family.settings}
    if family.is_nested:
        _write_json(folder / "processor_config.json", {**own, "image_processor": image})
        return
    _write_json(folder / "preprocessor_config.json", {**image, "processor_class": family.processor})
    if family.settings:
        _write_json(folder / "processor_config.json", own)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _sharpen(model: Any, factor: float) -> None:
    """Multiply the queries of the language model."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name and name.endswith("q_proj.weight"):
                parameter *= factor


def _shrink_scaled_embeddings(model: Any) -> None:
    """Undo the factor on embeddings that are the head too: with it, a model repeats its last token."""
    import torch

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embeddings.weight:
        with torch.no_grad():
            head.weight /= float(getattr(embeddings, "embed_scale", 1.0))


def _never_generate(model: Any, ids: list[int]) -> None:
    """Give some tokens the logit 0, which is never the largest of many: trained models do not write placeholders."""
    import torch

    with torch.no_grad():
        model.get_output_embeddings().weight[ids] = 0
