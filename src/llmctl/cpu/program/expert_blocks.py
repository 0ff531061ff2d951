"""The building blocks of mixtures of experts (MoE): a router, experts, and shared experts that every token has."""

from functools import partial
from typing import Any

from llmctl.cpu.experts import Routing
from llmctl.cpu.program.blocks import Blocks, UnexpectedModuleError, expect_children
from llmctl.cpu.program.modules import experts_forward, gated_shared_expert_forward, router_forward
from llmctl.cpu.program.writer import View, Weight


class ExpertBlocks(Blocks):
    """Adds blocks of mixtures of experts."""

    def moe(
        self,
        module: Any,
        x: View,
        routing: Routing,
        *,
        router: Any,
        router_class: str,
        shared_experts: str | None = None,
        shared: View | None = None,
    ) -> View:
        """Compute a mixture of experts.

        Args:
            module: The MoE module, with a router, experts and at most the shared experts.
            x: The normalised hidden states.
            routing: The arithmetic of the router.
            router: The router, which has a weight and perhaps a bias.
            router_class: transformers' class of the router, whose arithmetic `routing` describes.
            shared_experts: The name of a gated MLP whose output is added.
            shared: The output of shared experts outside of the module, which is added.
        """
        routers = [name for name, child in module.named_children() if child is router]
        expect_children(module, *routers, "experts", *([] if shared_experts is None else [shared_experts]))
        if len(routers) != 1 or type(router).__name__ != router_class:
            raise UnexpectedModuleError(type(router).__name__)
        if shared_experts is not None:
            shared = self.gated_mlp(getattr(module, shared_experts), x)
        return self._experts(module.experts, x, routing, router, shared)

    def moe_with_gated_shared_expert(self, module: Any, x: View, routing: Routing, *, router_class: str) -> View:
        """Compute Qwen2's mixture of experts, whose shared_expert is multiplied by sigmoid(shared_expert_gate(x)).

        Args:
            module: The MoE module, whose router is named gate.
            x: The normalised hidden states.
            routing: The arithmetic of the router.
            router_class: transformers' class of the router.
        """
        expect_children(module, "gate", "experts", "shared_expert", "shared_expert_gate")
        if type(module.gate).__name__ != router_class:
            raise UnexpectedModuleError(type(module.gate).__name__)
        output = self.gated_mlp(module.shared_expert, x)
        gate = self._linear(module.shared_expert_gate, x, "shared_expert_gate")
        shared = self._buffer("shared_expert", self._hidden_size)
        self.writer.gated_activation(
            gate, output, shared, width=self._hidden_size, activation="sigmoid", gate_width=gate.stride
        )
        out = self._experts(module.experts, x, routing, module.gate, shared)
        self.forwards.append((module, partial(gated_shared_expert_forward, module)))
        return out

    def _experts(self, module: Any, x: View, routing: Routing, router: Any, shared: View | None) -> View:
        """Compute the experts that the router chooses, and add the output of shared experts."""
        from llmctl.cpu.expert_layers import experts_of, has_expert_layout

        if router._forward_hooks or router._forward_pre_hooks or "forward" in vars(router):
            raise UnexpectedModuleError("a router with a hook")
        is_packed = hasattr(module, "packed")
        if module._forward_hooks or module._forward_pre_hooks or ("forward" in vars(module) and not is_packed):
            raise UnexpectedModuleError("experts with a hook")
        experts = experts_of(module) if is_packed or has_expert_layout(module) else None
        if experts is None:
            raise UnexpectedModuleError("experts that the kernels cannot compute")
        weight, bias = router.weight.detach(), getattr(router, "bias", None)
        bias = None if bias is None else bias.detach()
        logits = self._router_logits(Weight(weight, *weight.shape), x, bias, routing)
        out = self._buffer("sublayer_output" if shared is None else "experts_output", self._hidden_size)
        self.writer.experts(x, self.writer.route(logits, routing), out, routing, experts)
        self.forwards.append((router, partial(router_forward, router, weight, bias, routing)))
        self.forwards.append((module, partial(experts_forward, module, experts)))
        if shared is None:
            return out
        total = self._buffer("sublayer_output", self._hidden_size)
        self.writer.add(out, shared, total, width=self._hidden_size)
        return total

    def _router_logits(self, weight: Weight, x: View, bias: Any, routing: Routing) -> View:
        if routing.float_logits:
            logits = self._buffer("router_logits", weight.n * 4 // self.writer.dtype.itemsize)
            self.writer.float_linear(weight, x, logits, bias)
        else:
            logits = self._buffer("router_logits", weight.n)
            self.writer.linear(weight, x, logits, bias)
        return logits
