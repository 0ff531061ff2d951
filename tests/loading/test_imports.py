"""What a cold start leaves out is not needed, and can still be had."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ANSWER = """
import sys, llmctl
loaded = llmctl.load(sys.argv[1], load={"dtype": "float32"}, generation={"max_new_tokens": 8})
print(llmctl.generate(loaded, "once upon a time").token_ids)
print([name for name in ("torch._dynamo", "torch.distributed.tensor", "peft", "bitsandbytes") if name in sys.modules])
"""
COMPILE = (
    ANSWER
    + """
import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.masking_utils import TransformGetItemToIndex
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert "torch._dynamo" in sys.modules and torch._dynamo.__file__
with TransformGetItemToIndex():
    pass
print("compiled")
"""
)


def run(script: str, model: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_an_answer_needs_neither_the_compiler_nor_other_processes(
    tiny_models: Callable[[str], Path], name: str
) -> None:
    lean = run(ANSWER, tiny_models(name))
    plain = run(ANSWER, tiny_models(name), LLMCTL_PLAIN_IMPORTS="1")
    assert lean[0] == plain[0]
    assert lean[1] == "[]"
    assert "torch._dynamo" in plain[1]


def test_the_compiler_is_there_when_somebody_asks_for_it(tiny_models: Callable[[str], Path]) -> None:
    assert run(COMPILE, tiny_models("llama"))[-1] == "compiled"


def test_the_garbage_collector_is_as_it_was(tiny_models: Callable[[str], Path]) -> None:
    script = ANSWER + "import gc\nprint(gc.isenabled())"
    assert run(script, tiny_models("llama"))[-1] == "True"
