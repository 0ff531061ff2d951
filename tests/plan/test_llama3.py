"""The plan for Llama 3 8B on three machines, as it is printed.

The T4 by hand: of 15 GiB 0.5 are in use, 0.9 GB are overhead, and 2560 tokens take 0.34 GB of KV cache and
2560 * (8 * 4096 + 4 * 14336) * 2 = 0.46 GB of activations; 13.9 GB are left. The embedding takes 1.05 GB and a block
0.436 GB, so 29 blocks go with it (13.7 GB); 3 blocks and the head (2.4 GB) do not.
"""

import pytest

from llmctl.config import settings_from_mapping
from llmctl.machine.detection import Machine
from llmctl.plan import PlanRequest, make_plan
from support.machines import H100, LLAMA3_8B, RTX_4090, T4

PRINTED = {
    "T4": """\
device_map=13.7 GB on cuda:0, 2.36 GB on cpu: spilled: the GPUs have no room for all 16.1 GB
dtype=float16: Tesla T4 has compute capability 7.5, bfloat16 needs 8.0 or more
attn_implementation=sdpa: flash_attention_2 needs compute capability 8.0 or more, Tesla T4 has 7.5; \
keys and values are repeated, since no fused kernel for this GPU takes shared ones
""",
    "T4, 4-bit": """\
device_map=cuda:0: all 6.03 GB of weights fit on it, and 798 MB for KV cache and activations
dtype=float16: Tesla T4 has compute capability 7.5, bfloat16 needs 8.0 or more
attn_implementation=sdpa: flash_attention_2 needs compute capability 8.0 or more, Tesla T4 has 7.5; \
keys and values are repeated, since no fused kernel for this GPU takes shared ones
quantization=bitsandbytes 4-bit nf4: asked for: nf4 of bitsandbytes
bnb_4bit_compute_dtype=float16: half precision; the library's default, float32, is several times slower
""",
    "RTX 4090": """\
device_map=cuda:0: all 16.1 GB of weights fit on it, and 798 MB for KV cache and activations
dtype=bfloat16: the weights are stored in it and the GPU computes it
attn_implementation=flash_attention_2: flash_attn is installed, the GPU is new enough, bfloat16
""",
    "H100": """\
device_map=cuda:0: all 16.1 GB of weights fit on it, and 798 MB for KV cache and activations
dtype=bfloat16: the weights are stored in it and the GPU computes it
attn_implementation=flash_attention_2: flash_attn is installed, the GPU is new enough, bfloat16
""",
}
CASES = [("T4", T4, None), ("T4, 4-bit", T4, 4), ("RTX 4090", RTX_4090, None), ("H100", H100, None)]


@pytest.mark.parametrize(("name", "machine", "bits"), CASES, ids=[case[0] for case in CASES])
def test_the_plan_matches_the_expected_text(name: str, machine: Machine, bits: int | None) -> None:
    plan = make_plan(PlanRequest(settings_from_mapping({"quantization": {"bits": bits}}).config, machine, LLAMA3_8B))
    printed = [str(decision) for decision in plan.decisions]
    print(f"\nLlama 3 8B on {name}:", *printed, sep="\n  ")  # noqa: T201 (pytest -s shows it)
    expected = PRINTED[name].splitlines()
    assert printed[: len(expected)] == expected
