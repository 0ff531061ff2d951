"""Weights that other code reads, found in the source of transformers' classes."""

import textwrap

from llmctl.model.modeling_source import modeling_source
from llmctl.quant.direct_reads import weights_read_directly

SOURCE = textwrap.dedent(
    """
    class Mixer(Module):
        def __init__(self):
            self.out_proj.weight.data.zero_()

        def _init_weights(self, module):
            module.in_proj.weight.normal_()

        def forward(self, x):
            if self.training and self.fast:
                return fused(x, self.out_proj.weight)
            if self.slices > 1:
                x = linear(x, self.dense.weight[0])
            for block in self.blocks:
                block.attention.output.weight.div_(2)
            x = x.to(self.in_proj.weight.dtype)
            return self.in_proj(self.dt_proj.weight @ x)
    """
)


def test_reads_in_a_pass_are_found_and_others_are_not() -> None:
    assert weights_read_directly(SOURCE, {"slices": 1}) == ("attention.output", "dt_proj")


def test_a_branch_counts_if_the_configuration_takes_it() -> None:
    assert "dense" in weights_read_directly(SOURCE, {"slices": 2})
    assert "dense" in weights_read_directly(SOURCE, {})


def test_the_source_is_found_by_the_type_of_the_model() -> None:
    assert "class RwkvModel" in modeling_source("rwkv")
    assert "class Qwen3_5TextModel" in modeling_source("qwen3_5_text")
    assert modeling_source("no-such-model") == modeling_source("../rwkv") == ""
    assert weights_read_directly(modeling_source("rwkv"), {}) == ("attention.output", "feed_forward.value")
    assert weights_read_directly(modeling_source("llama"), {}) == ()
