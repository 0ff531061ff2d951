"""RoPE whose frequencies depend on a sequence's length: answers are those of transformers, alone and in a batch."""

from pathlib import Path

import pytest
import torch
import transformers
from tests.support import tiny

import llmctl
from llmctl.generation.engine import Engine, EngineCapacity
from llmctl.generation.engine.packable import is_packable
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.rope import complete_beginning_again

SWITCH = 40
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 3 * number for number in range(8)],
    "original_max_position_embeddings": SWITCH,
    "factor": 4.0,
}


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_that_cross_the_switch_are_those_of_transformers(tmp_path: Path, dtype: str, single: bool) -> None:
    changes = {"rope_parameters": ROPE, "original_max_position_embeddings": SWITCH}
    folder = tiny.write_model(tmp_path / "phi3", "phi3", **changes)
    loaded = llmctl.load(folder, load={"dtype": dtype}, generation={"max_new_tokens": 12, "temperature": 0.0})
    prompts = [[(7 * number + start) % 300 + 5 for number in range(start)] for start in (5, 20, 34, 39, 40, 41, 60)]
    assert is_packable(loaded)
    requests = [make_request(loaded, Prompt(tuple(ids)), seed=1) for ids in prompts]
    found = dict(Engine(loaded, EngineCapacity(64, 512, 4096), single=single).run(enumerate(requests)))
    reference = loaded.model
    if dtype == "float32":  # in bfloat16, a program and transformers round differently: compare with the modules
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        complete_beginning_again(reference)
    for number, ids in enumerate(prompts):
        with torch.inference_mode():
            out = reference.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=0)
        expected = [token for token in out[0, len(ids) :].tolist() if token != 0]
        assert [token for token in found[number].token_ids if token != 0] == expected, len(ids)
