"""The building blocks of mixtures of experts (MoE): a router, experts, and shared experts that every token has."""

from functools import partial
from typing import TYPE_CHECKING, Any

from llmctl.cpu.experts import Experts, Routing
from llmctl.cpu.program.blocks import Blocks, UnexpectedModuleError, expect_children
from llmctl.cpu.program.modules import (
    experts_forward,
    gated_shared_expert_forward,
    normed_router_forward,
    router_forward,
    weighed_inputs_forward,
)
from llmctl.cpu.program.writer import RmsNorm, View, Weight

if TYPE_CHECKING:
    from torch import Tensor


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
        if len(routers) != 1:
            raise UnexpectedModuleError(f"{type(module).__name__} with another router")
        _expect_router(router, router_class)
        if shared_experts is not None:
            shared = self.gated_mlp(getattr(module, shared_experts), x)
        return self._plus(self._experts(module.experts, x, routing, router), shared)

    def moe_with_gated_shared_expert(self, module: Any, x: View, routing: Routing, *, router_class: str) -> View:
        """Compute Qwen2's mixture of experts, whose shared_expert is multiplied by sigmoid(shared_expert_gate(x)).

        Args:
            module: The MoE module, whose router is named gate.
            x: The normalised hidden states.
            routing: The arithmetic of the router.
            router_class: transformers' class of the router.
        """
        expect_children(module, "gate", "experts", "shared_expert", "shared_expert_gate")
        _expect_router(module.gate, router_class)
        output = self.gated_mlp(module.shared_expert, x)
        gate = self._linear(module.shared_expert_gate, x, "shared_expert_gate")
        shared = self._buffer("shared_expert", self._hidden_size)
        self.writer.gated_activation(
            gate, output, shared, width=self._hidden_size, activation="sigmoid", gates=gate.stride
        )
        out = self._plus(self._experts(module.experts, x, routing, module.gate), shared)
        self.forwards.append((module, partial(gated_shared_expert_forward, module)))
        return out

    def moe_with_weighed_inputs(self, module: Any, x: View, routing: Routing, *, router_class: str) -> View:
        """Compute Llama 4's mixture of experts, which multiplies the inputs of experts by their weights.

        Args:
            module: The MoE module, with router, experts and shared_expert.
            x: The normalised hidden states.
            routing: The arithmetic of the router.
            router_class: transformers' class of the router.
        """
        from llmctl.cpu.expert_layers import llama4_experts_of

        expect_children(module, "router", "experts", "shared_expert")
        _expect_router(module.router, router_class)
        experts = _expect_experts(module.experts, llama4_experts_of(module.experts))
        weight, _ = _router_weights(module.router)
        shared = self.gated_mlp(module.shared_expert, x)
        logits = self._router_logits(weight, x, None, routing)
        self.forwards.append((module, partial(weighed_inputs_forward, module, weight, routing, experts)))
        return self._plus(self._chosen_experts(x, logits, routing, experts), shared)

    def moe_of_ungated_experts(self, module: Any, x: View, routing: Routing, *, router_class: str) -> View:
        """Compute Nemotron-H's mixture of experts without gates, between latent projections if it has them.

        Args:
            module: The MoE module, whose router is named gate.
            x: The normalised hidden states.
            routing: The arithmetic of the router.
            router_class: transformers' class of the router.
        """
        from llmctl.cpu.expert_layers import ungated_experts_of

        expect_children(module, "gate", "experts", "shared_experts", "fc1_latent_proj", "fc2_latent_proj")
        _expect_router(module.gate, router_class)
        experts = _expect_experts(module.experts, ungated_experts_of(module.experts))
        is_latent = type(module.fc1_latent_proj).__name__ != "Identity"
        shared = self.mlp(module.shared_experts, x)
        weight, bias = _router_weights(module.gate)
        logits = self._router_logits(weight, x, bias, routing)
        inputs = self._linear(module.fc1_latent_proj, x, "expert_latent") if is_latent else x
        out = self._chosen_experts(inputs, logits, routing, experts)
        self.forwards.append((module.gate, partial(router_forward, module.gate, weight, bias, routing)))
        self.forwards.append((module.experts, partial(experts_forward, module.experts, experts)))
        return self._plus(self._linear(module.fc2_latent_proj, out, "routed") if is_latent else out, shared)

    def experts_with_normed_router(self, router: Any, module: Any, x: View, router_input: View, *, top_k: int) -> View:
        """Compute Gemma 4's experts, whose router has a norm of its own.

        Args:
            router: The router, with norm, scale, proj and per_expert_scale.
            module: The experts.
            x: The normalised inputs of the experts.
            router_input: The inputs of the router.
            top_k: The number of experts per token.
        """
        from llmctl.cpu.expert_layers import experts_of, has_expert_layout

        _expect_router(router, "Gemma4TextRouter")
        expect_children(router, "norm", "proj")
        is_known = hasattr(module, "packed") or has_expert_layout(module)
        experts = _expect_experts(module, experts_of(module) if is_known else None)
        size = self._hidden_size
        norm = self._norm(router.norm, size)
        normed = self._buffer("router_input", size)
        scaled = RmsNorm(size, router.scale.detach(), norm.epsilon, "norm_then_weight")
        self.writer.rms_norm(scaled, router_input, normed)
        self.writer.scale(normed, router.scalar_root_size)
        logits = self._linear(router.proj, normed, "router_logits")
        factors = router.per_expert_scale.detach()
        routing = Routing(logits.stride, top_k, normalize=True, factors=factors)
        self.forwards.append((router, partial(normed_router_forward, router, routing)))
        self.forwards.append((module, partial(experts_forward, module, experts)))
        return self._chosen_experts(x, logits, routing, experts)

    def _experts(self, module: Any, x: View, routing: Routing, router: Any) -> View:
        """Compute the experts that the router chooses."""
        from llmctl.cpu.expert_layers import experts_of, has_expert_layout

        is_known = hasattr(module, "packed") or has_expert_layout(module)
        experts = _expect_experts(module, experts_of(module) if is_known else None)
        weight, bias = _router_weights(router)
        logits = self._router_logits(weight, x, bias, routing)
        self.forwards.append((router, partial(router_forward, router, weight, bias, routing)))
        self.forwards.append((module, partial(experts_forward, module, experts)))
        return self._chosen_experts(x, logits, routing, experts)

    def _chosen_experts(self, x: View, logits: View, routing: Routing, experts: Experts) -> View:
        out = self._buffer("experts_output", experts.hidden)
        self.writer.experts(x, self.writer.route(logits, routing), out, routing, experts)
        return out

    def _plus(self, out: View, shared: View | None) -> View:
        """Add the output of shared experts."""
        if shared is None:
            return out
        total = self._buffer("sublayer_output", self._hidden_size)
        self.writer.add(out, shared, total, width=self._hidden_size)
        return total

    def _router_logits(self, weight: "Tensor", x: View, bias: "Tensor | None", routing: Routing) -> View:
        matrix = Weight(weight, *weight.shape)
        if routing.float_logits:
            logits = self._buffer("router_logits", matrix.n * 4 // self.writer.dtype.itemsize)
            self.writer.float_linear(matrix, x, logits, bias)
        else:
            logits = self._buffer("router_logits", matrix.n)
            self.writer.linear(matrix, x, logits, bias)
        return logits


def _expect_router(router: Any, name: str) -> None:
    """Raise UnexpectedModuleError unless a router is of this class, and without hooks."""
    if type(router).__name__ != name:
        raise UnexpectedModuleError(type(router).__name__)
    if router._forward_hooks or router._forward_pre_hooks or "forward" in vars(router):
        raise UnexpectedModuleError("a router with a hook")


def _expect_experts(module: Any, experts: Experts | None) -> Experts:
    """Return the experts of a module. Raises UnexpectedModuleError if there are none, or if the module has hooks."""
    has_forward = "forward" in vars(module) and not hasattr(module, "packed")
    if module._forward_hooks or module._forward_pre_hooks or has_forward:
        raise UnexpectedModuleError("experts with a hook")
    if experts is None:
        raise UnexpectedModuleError("experts that the kernels cannot compute")
    return experts


def _router_weights(router: Any) -> "tuple[Tensor, Tensor | None]":
    """Return the weight and the bias of a router, or of the linear layer in it."""
    part = router if hasattr(router, "weight") else router.wg
    if hasattr(part, "packed"):
        raise UnexpectedModuleError("a quantised router")
    bias = getattr(part, "bias", None)
    return part.weight.detach(), None if bias is None else bias.detach()
