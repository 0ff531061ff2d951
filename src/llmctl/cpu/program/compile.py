"""Compilation of a model of a supported family into a program. All other models run module by module."""

from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.cpu import kernels
from llmctl.cpu.program.blocks import UnexpectedModuleError, frequencies_of
from llmctl.cpu.program.latent_blocks import LatentBlocks
from llmctl.cpu.program.llama import Llama
from llmctl.cpu.program.per_layer_blocks import PerLayerBlocks
from llmctl.cpu.program.recurrent_blocks import RecurrentBlocks
from llmctl.cpu.program.recurrent_writer import RecurrentWriter
from llmctl.cpu.program.run import Layout, Pair, Program
from llmctl.cpu.tensors import dtype_codes
from llmctl.rope import rope_by_sequence, rope_depends_on_length

if TYPE_CHECKING:
    from torch import Tensor


class AllBlocks(RecurrentBlocks, LatentBlocks, PerLayerBlocks):
    """The blocks of all families."""


class CompiledModel:
    """A model's program, and the parts of a pass that are computed in Python: RoPE tables and scaling of the logits.

    Attributes:
        program: The computation from token ids to logits.
    """

    def __init__(self, program: Program, blocks: AllBlocks) -> None:
        self.program = program
        self._ropes, self._token_factors = tuple(blocks.ropes), tuple(blocks.token_factors)
        self._multiplier, self._softcap = blocks.logits_multiplier, blocks.logits_softcap
        self._media_multiplier = blocks.media_multiplier

    def forward(self, layout: Layout, kv_cache: list[Pair], states: "Sequence[Tensor]" = ()) -> "Tensor":
        """Return the logits in float32 [sequences, vocabulary] after the last token of each sequence.

        `Program.run` explains the arguments.
        """
        import torch

        with torch.inference_mode():
            ropes = self._rope_tables(layout)
            factors = [compute(layout.position_ids.flatten(0, -2)[0]) for compute in self._token_factors]
            logits = self.program.run(layout, ropes, kv_cache, states, factors, self._media(layout))
            if self._multiplier != 1.0:
                logits = logits * self._multiplier
            if self._softcap:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            return logits

    def _media(self, layout: Layout) -> "list[Tensor]":
        media, dtype = layout.media, self.program.dtype
        if media is None:
            return []
        embeddings = media.embeddings * self._media_multiplier if self._media_multiplier != 1.0 else media.embeddings
        return [rows.to(dtype).contiguous() for rows in (embeddings, *media.deepstack)]

    def _rope_tables(self, layout: Layout) -> list[Pair]:
        import torch

        like, positions = torch.empty(0, dtype=self.program.dtype), layout.position_ids
        tables = []
        for rotary_emb, layer_type in self._ropes:
            kind = [] if layer_type is None else [layer_type]
            if rope_depends_on_length(rotary_emb):
                starts, lengths = layout.query_starts, layout.rope_lengths
                pair = rope_by_sequence(
                    partial(_cosines_and_sines, rotary_emb), like, positions, *kind, starts=starts, lengths=lengths
                )
            else:
                pair = _cosines_and_sines(rotary_emb, like, positions, *kind)
            size = 2 * frequencies_of(rotary_emb, layer_type).numel()
            tables.append((_whole_table(pair[0][0], size), _whole_table(pair[1][0], size)))
        return tables


def _cosines_and_sines(rotary_emb: Any, *arguments: Any) -> Pair:
    """Return the tables of a RoPE; some modules return them as complex numbers.

    Modules with sections for time, height and width expand the positions to three rows, except in transformers 5.18.
    """
    import torch

    like, positions, *kind = arguments
    if hasattr(rotary_emb, "mrope_section"):
        positions = positions.expand(3, -1, -1)
    tables: Any = rotary_emb(like, positions, *kind)
    return (tables.real, tables.imag) if isinstance(tables, torch.Tensor) else tables


def _whole_table(table: "Tensor", size: int) -> "Tensor":
    """Return cosines or sines for both halves of `size` rotated elements; gpt-oss computes those of one half."""
    import torch

    return table if table.shape[-1] == size else torch.cat([table, table], -1)


_COMPILED: "WeakKeyDictionary[Any, CompiledModel]" = WeakKeyDictionary()


@cache
def families() -> dict[str, type[Llama]]:
    """Return all families that the modules of this package define, by the name of transformers' class."""
    package = import_module(__package__ or "")
    modules = [import_module(f"{package.__name__}.{info.name}") for info in iter_modules(package.__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {family.transformers_class: family for family in classes if issubclass(family, Llama)}


@cache
def text_families() -> dict[str, type[Llama]]:
    """Return all families by the names of transformers' classes of their language models without an output head."""
    named = {
        name.replace("ForCausalLM", end): family
        for name, family in families().items()
        for end in ("Model", "TextModel")
    }
    return named | {name: family for family in families().values() for name in vars(family).get("text_classes", ())}


def _language_model(model: Any) -> tuple[type[Llama] | None, Any]:
    """Return the family of a model, and its language model with the output head: for most models, the model itself."""
    from torch import nn

    family = families().get(type(model).__name__)
    if family is not None:
        return family, model
    body, head = model.get_decoder(), model.get_output_embeddings()
    family = text_families().get(type(body).__name__)
    if family is None or head is None or body is model:
        return None, model
    part = nn.Module()  # a composite model: the family reads it as if it were a language model
    setattr(part, family.body_name, body)
    part.lm_head, part.config = head, body.config
    return family, part


def compiled(model: Any) -> CompiledModel | None:
    """Return the result of `compile_model` for a model, or None."""
    return _COMPILED.get(model)


def compile_model(model: Any) -> bool:
    """Compile a model on the CPU whose linear layers use the kernels. Return False if that is not possible.

    Afterwards, the model's norms, gated MLPs and routers use the program's operations too, so that running the modules
    (beam search, drafts) rounds as the program does.
    """
    (family, part), native = _language_model(model), kernels.load()
    if family is None or native is None or model.dtype not in dtype_codes():
        return False
    if any(tensor.device.type != "cpu" for tensor in model.parameters()):
        return False
    blocks = AllBlocks(part, RecurrentWriter(model.dtype), family.norm_flavour)
    try:
        family(part, blocks).build()
    except UnexpectedModuleError:
        return False
    if not blocks.writer.kv_shapes:
        return False  # passes are laid out in pages of keys and values
    if part is not model and (blocks.logits_multiplier != 1.0 or blocks.logits_softcap):
        return False  # a composite class may leave out what the class of its language model does with logits
    _COMPILED[model] = CompiledModel(Program(native, blocks.writer), blocks)
    for module, forward in blocks.forwards:
        module.forward = forward
    return True
