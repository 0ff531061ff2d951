"""The bounds of Mamba 2's time steps."""

from pathlib import Path

import pytest
import torch

import llmctl
from support.architectures.build import build
from support.architectures.prompts import PROMPTS


@pytest.mark.filterwarnings("ignore")
def test_a_result_does_not_depend_on_the_division_of_a_prompt_into_passes(tmp_path: Path) -> None:
    build("zamba2", tmp_path)
    model = llmctl.load(tmp_path, load={"dtype": "float32"}, offline=True).model
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        together = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        first = model(input_ids=ids[:, :-4], use_cache=True)
        name = "cache" if "cache" in first else "past_key_values"
        for place in range(ids.shape[1] - 4, ids.shape[1]):
            last = model(input_ids=ids[:, place : place + 1], use_cache=True, **{name: first[name]})
    torch.testing.assert_close(last.logits[0, -1].log_softmax(-1), together, atol=1e-4, rtol=0)
