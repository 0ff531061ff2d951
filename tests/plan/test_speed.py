"""Estimates of speed on a CPU, from planted rates of the kernels."""

from dataclasses import replace

import pytest

from llmctl.config import settings_from_mapping
from llmctl.machine.cpu_rates import CpuRates
from llmctl.plan import Plan, PlanRequest, make_plan
from llmctl.plan.speed import Range, Speed, estimate_speed
from llmctl.plan.work import weight_reads
from support.machines import WORKSTATION, decoder_info

MACHINE = replace(WORKSTATION, kernels="avx512bf16", physical_cores=2)
# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct and the shape of Llama 3.2 1B
SMOLLM2 = decoder_info(
    source="smollm2", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, vocabulary=49152, context=8192,
    tied=True,
)  # fmt: skip
LLAMA_1B = decoder_info(
    source="llama-1b", layers=16, hidden=2048, intermediate=8192, heads=32, kv_heads=8, vocabulary=128256,
    context=8192, tied=True,
)  # fmt: skip
# Two cores of Zen 5: rates by `llmctl plan --measure`, and what `llmctl bench` measured without other programs.
RATES = CpuRates(
    45e9,
    {"float32": 45e9, "bfloat16": 35e9, "8-bit": 43e9, "4-bit": 40e9},
    {"float32": 280e9, "bfloat16": 750e9, "8-bit": 930e9, "4-bit": 1030e9},
    "2026-01-31",
)
MEASURED = [  # bits, prompt, prefill, decode
    (SMOLLM2, None, 64, 1830, 106),
    (SMOLLM2, None, 512, 2190, 73.5),
    (SMOLLM2, 8, 64, 2680, 206),
    (SMOLLM2, 8, 512, 2840, 154),
    (SMOLLM2, 4, 64, 2980, 279),
    (SMOLLM2, 4, 512, 2985, 201),
    (LLAMA_1B, None, 64, 326, 13.3),
    (LLAMA_1B, None, 512, 347, 13.8),
    (LLAMA_1B, 8, 64, 466, 33.5),
    (LLAMA_1B, 8, 512, 481, 33.0),
    (LLAMA_1B, 4, 64, 510, 50.5),
    (LLAMA_1B, 4, 512, 519, 48.9),
]


def plan_of(info: object, bits: int | None = None, dtype: str = "bfloat16", context: int = 544) -> Plan:
    config = settings_from_mapping({"load": {"dtype": dtype}, "quantization": {"bits": bits}}).config
    return make_plan(PlanRequest(config, MACHINE, info, context=context))  # type: ignore[arg-type]


def estimate(plan: Plan, info: object, **arguments: object) -> Speed:
    speed = estimate_speed(plan, MACHINE, info, **arguments)  # type: ignore[arg-type]
    assert speed is not None
    return speed


def is_within(planned: Range, measured: float, factor: float) -> bool:
    return planned[0] * factor >= measured >= planned[1] / factor and planned[0] < planned[1]


@pytest.mark.parametrize(("info", "bits", "prompt", "prefill", "decode"), MEASURED)
def test_both_ends_of_the_estimate_are_near_the_measurement(
    info: object, bits: int | None, prompt: int, prefill: float, decode: float
) -> None:
    speed = estimate(plan_of(info, bits), info, cpu_rates=RATES, prompt_tokens=prompt)
    assert is_within(speed.decode, decode, 1.5)
    assert is_within(speed.prefill, prefill, 1.6)


def test_decoding_reads_each_weight_in_its_own_kind() -> None:
    plan = plan_of(LLAMA_1B, 4)
    reads = weight_reads(LLAMA_1B, dtype="bfloat16", quantization=plan.quantization)
    table = 128256 * 2048
    assert reads["8-bit"] == pytest.approx(table * 8.5 / 8), "the head, tied to the embedding, keeps 8 bits"
    assert reads["4-bit"] == pytest.approx((LLAMA_1B.parameters - table) * 4.5 / 8, rel=0.001)
    assert reads["bfloat16"] == 2 * (2 * 16 + 1) * 2048, "the norms"


def test_an_embedding_of_its_own_is_not_read() -> None:
    untied = decoder_info(
        source="a/b", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=4, vocabulary=1000, context=64
    )
    reads = weight_reads(untied, dtype="bfloat16", quantization=None)
    assert reads == {"bfloat16": 2 * (untied.parameters - 64 * 1000)}


def test_a_full_context_decodes_more_slowly() -> None:
    speed = estimate(plan_of(SMOLLM2, 4, context=8192), SMOLLM2, cpu_rates=RATES)
    assert speed.decode_at_end[1] < speed.decode[0]


def test_faster_rates_make_a_faster_estimate() -> None:
    twice = replace(RATES, decode={kind: 2 * rate for kind, rate in RATES.decode.items()})
    slow, fast = (estimate(plan_of(LLAMA_1B), LLAMA_1B, cpu_rates=rates) for rates in (RATES, twice))
    assert fast.decode[0] > 1.9 * slow.decode[0]
    assert fast.prefill == slow.prefill


def test_weights_of_torch_are_estimated_from_the_bandwidth_alone() -> None:
    plan = replace(plan_of(LLAMA_1B, dtype="float32"), kernels="torch")
    with_kernels, without = (estimate(plan, LLAMA_1B, cpu_rates=rates) for rates in (RATES, CpuRates(RATES.bandwidth)))
    assert with_kernels == without
    assert is_within(without.decode, 4.25, 2)


def test_without_measured_rates_a_cpu_has_no_estimate() -> None:
    assert estimate_speed(plan_of(LLAMA_1B), MACHINE, LLAMA_1B) is None
