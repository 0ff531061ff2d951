"""Weights that stay in float32, found in the source of transformers' classes."""

import textwrap

import pytest

from llmctl.model.float32_weights import computes_only_in_float32, float32_weights, modules_not_quantised
from llmctl.model.modeling_source import modeling_source, never_ties_head

SOURCE = textwrap.dedent(
    """
    class Router(nn.Module):
        def __init__(self, config):
            self.weight = nn.Parameter(torch.zeros(4, 64, dtype=torch.float32))
            self.bias = nn.Parameter(torch.zeros(4))

    class Mixer(nn.Module):
        def __init__(self, config):
            A = torch.arange(1, 9, dtype=torch.float32)
            self.A_log = nn.Parameter(torch.log(A))
            self.D = nn.Parameter(torch.ones(8))
            self.register_buffer("scale", torch.ones(8, dtype=torch.float32))
            self.norm = nn.LayerNorm(8, dtype=torch.float32)

    class Block(nn.Module):
        def __init__(self, config):
            self.gate = Router(config)
            self.mixer = Mixer(config)

    class Model(PreTrainedModel):
        _keep_in_fp32_modules_strict = ["sinks"]
        _keep_in_fp32_modules = ["indexer.proj"]
    """
)


@pytest.mark.parametrize("name", ["gate.weight", "mixer.A_log", "mixer.scale", "mixer.norm.bias", "self_attn.sinks"])
def test_listed_weights_and_those_made_in_float32_stay_so(name: str) -> None:
    pattern = float32_weights(SOURCE, dtype="bfloat16")
    assert pattern is not None
    assert pattern.search(f"model.layers.0.{name}")


@pytest.mark.parametrize("name", ["gate.bias", "mixer.D", "up_proj.weight", "indexer.proj.weight"])
def test_other_weights_have_the_dtype_of_the_model(name: str) -> None:
    pattern = float32_weights(SOURCE, dtype="bfloat16")
    assert pattern is not None
    assert not pattern.search(f"model.layers.0.{name}")


def test_some_weights_stay_in_float32_in_float16_only_and_are_never_quantised() -> None:
    pattern = float32_weights(SOURCE, dtype="float16")
    assert pattern is not None
    assert pattern.search("model.layers.0.indexer.proj.weight")
    assert modules_not_quantised(SOURCE) == ("indexer.proj",)


def test_most_models_have_no_such_weights() -> None:
    assert float32_weights(modeling_source("llama"), dtype="float16") is None


def test_classes_that_multiply_float32_by_half_precision_compute_in_float32_only() -> None:
    norm = """
class DeepseekV4RMSNorm(nn.Module):
    def forward(self, x):
        {}

class DeepseekV4Experts(nn.Module):
    pass
"""
    assert computes_only_in_float32(norm.format("return self.weight * hidden_states.to(input_dtype)"))
    assert not computes_only_in_float32(norm.format("return (self.weight * hidden_states).to(input_dtype)"))
    assert computes_only_in_float32(modeling_source("xlnet"))
    assert not computes_only_in_float32(modeling_source("llama"))


def test_a_class_without_a_rule_for_its_head_never_ties_it() -> None:
    assert never_ties_head(modeling_source("bigbird_pegasus"), "BigBirdPegasusForCausalLM")
    assert not never_ties_head(modeling_source("llama"), "LlamaForCausalLM")
    assert not never_ties_head(modeling_source("llama"), "NoSuchClass")
