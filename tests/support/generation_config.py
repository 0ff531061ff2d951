"""A loaded model with another generation_config.json, without loading it again."""

import json
from dataclasses import replace
from typing import Any

from llmctl.loading.model import LoadedModel
from llmctl.model.generation_config import parse_generation_defaults
from llmctl.model.tokenizer import end_tokens
from llmctl.plan import PlanRequest, make_plan


def with_generation_config(loaded: LoadedModel, content: Any) -> LoadedModel:
    """Return the model as if its folder had this generation_config.json: JSON values, or the bytes of the file."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    info = replace(loaded.info, generation=parse_generation_defaults(data, loaded.info.config))
    plan = make_plan(PlanRequest(loaded.config, loaded.machine, info))
    ends = end_tokens(loaded.tokenizer, info.generation.eos_token_ids)
    return replace(loaded, prepared=replace(loaded.prepared, info=info, plan=plan), eos_token_ids=tuple(ends))
