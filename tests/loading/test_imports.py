"""A cold start skips imports that an answer does not need, and they still work on demand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ARCHITECTURES = ("llama", "gemma3", "mixtral")
ANSWERS = """
import gc, json, sys, llmctl
answers = []
for folder in sys.argv[1:]:
    loaded = llmctl.load(folder, load={"dtype": "float32"}, generation={"max_new_tokens": 8})
    answers.append(llmctl.generate(loaded, "once upon a time").token_ids)
left_out = ("torch._dynamo", "torch.distributed.tensor", "peft", "bitsandbytes")
result = {"answers": answers, "imported": [name for name in left_out if name in sys.modules], "gc": gc.isenabled()}
"""
THEN_COMPILE = """
import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.masking_utils import TransformGetItemToIndex
result["compiled"] = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
with TransformGetItemToIndex():
    result["dynamo"] = "torch._dynamo" in sys.modules and bool(torch._dynamo.__file__)
"""


def run(script: str, folders: list[Path], **environment: str) -> Any:
    """Return what a Python process of its own prints as JSON."""
    command = [sys.executable, "-c", f"{script}\nprint(json.dumps(result))", *map(str, folders)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def lean(tiny_models: Callable[[str], Path]) -> Any:
    """One process that answers with each model, and then compiles."""
    return run(ANSWERS + THEN_COMPILE, [tiny_models(name) for name in ARCHITECTURES])


def test_an_answer_needs_neither_the_compiler_nor_other_processes(
    lean: Any, tiny_models: Callable[[str], Path]
) -> None:
    plain = run(ANSWERS, [tiny_models(name) for name in ARCHITECTURES], LLMCTL_PLAIN_IMPORTS="1")
    assert lean["answers"] == plain["answers"]
    assert lean["imported"] == []
    assert "torch._dynamo" in plain["imported"]


def test_the_compiler_is_imported_on_demand(lean: Any) -> None:
    assert (lean["compiled"], lean["dynamo"]) == (2, True)


def test_the_state_of_the_garbage_collector_is_restored(lean: Any) -> None:
    assert lean["gc"] is True
