"""The towers of a composite model, loaded apart from its language model, and the features that they give for images.

The composite class of transformers merges the features of images into the embeddings of a prompt and computes positions
and masks. llmctl runs its forward pass for a prompt of one image alone, with the language model replaced by a recorder
of its arguments. The engine puts the recorded rows into the packed passes of the language model, which is in memory
once. So each family's own code decides what an image becomes.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llmctl import transformers_compat as compat
from llmctl.errors import ModelError, UserError
from llmctl.loading.weights import read_config, translated_errors
from llmctl.quant.backend import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.loading.prepare import Prepared

_UNQUANTISED = (*FLOATS, "I64", "BOOL")  # positions are integers
# Arguments of a language model that do not depend on the image, or that packed passes make themselves.
_PLAIN = {
    *("cache", "past_key_values", "use_cache", "return_dict", "output_attentions", "output_hidden_states"),
    *("cache_position", "logits_to_keep", "visual_pos_masks", "input_ids", "image_sizes", "image_hidden_states"),
}


@dataclass(frozen=True)
class ImageFeatures:
    """The features of an image, as the language model takes them.

    Attributes:
        embeddings: [tokens, hidden size], the rows that stand in place of the embeddings of the placeholder tokens.
        deepstack: Rows of the same shape to add to the hidden states after the first, second, … layer.
        positions: [axes, tokens], relative to the position of the first token, for RoPE with several axes; None if
            every token has the next position.
        advance: The position of the token after the image, relative to that of the first one.
        blocks: True for each kind of layer (without a window, with one) if the tokens of an image see each other.
        sees_prompt: True if all tokens of a prompt with images see each other.
    """

    embeddings: "Tensor"
    deepstack: "tuple[Tensor, ...]" = ()
    positions: "Tensor | None" = None
    advance: int = 0
    blocks: tuple[bool, bool] = (False, False)
    sees_prompt: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows."""
        return sum(int(rows.nbytes) for rows in (self.embeddings, *self.deepstack))


class VisionTowers:
    """The towers of a composite model, in memory.

    Args:
        model: The composite model, with a recorder in place of its language model.
        recorder: The recorder.
    """

    def __init__(self, model: Any, recorder: Any) -> None:
        self.model, self._recorder = model, recorder

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights, without those shared with the language model."""
        shared = {id(parameter) for parameter in self._recorder.parameters()}
        return sum(one.nbytes for one in self.model.parameters() if id(one) not in shared)

    def features(self, inputs: "Mapping[str, Tensor]", token_id: int) -> ImageFeatures:
        """Return the features of an image, given the composite model's arguments for a prompt of this image alone.

        Args:
            token_id: The placeholder token.

        Raises:
            UserError: the model needs more than packed passes can give it, such as layers with cross-attention.
        """
        import torch

        placed = {name: value.to(self.model.device) for name, value in inputs.items()}
        given = _with_text_around(placed, token_id)
        with torch.inference_mode():
            recorded = self._record(given)
        unknown = {
            name
            for name, value in recorded.items()
            if isinstance(value, torch.Tensor | tuple | list) and name not in _PLAIN | _USED
        }
        if unknown:
            raise UserError(f"images of {self.model.config.model_type} models need {', '.join(sorted(unknown))}")
        places = given["input_ids"][0] == token_id
        if not bool(places.any()):
            raise ModelError("the processor gives no token for an image")
        return _features(recorded, places)

    def _record(self, inputs: "dict[str, Tensor]") -> dict[str, Any]:
        self._recorder.recorded = None
        with suppress(_RecordedError):
            self.model(**compat.accepted_arguments(self.model, inputs), use_cache=False)
        recorded = self._recorder.recorded
        if recorded is None:
            raise ModelError("the composite model does not call its language model")
        return dict(recorded)


_USED = {"inputs_embeds", "position_ids", "attention_mask", "deepstack_visual_embeds", "per_layer_inputs"}


class _RecordedError(Exception):
    """Ends a forward pass where the language model would begin."""


def _with_text_around(inputs: "dict[str, Tensor]", token_id: int) -> "dict[str, Tensor]":
    """Return the inputs with a token of text before and after the image, which show its positions and visibility."""
    import torch

    ids = inputs["input_ids"]
    text = int(next(token for token in range(token_id + 2) if token != token_id))
    edge = torch.full((1, 1), text, dtype=ids.dtype, device=ids.device)
    changed = {"input_ids": torch.cat([edge, ids, edge], 1)}
    for name, value in inputs.items():
        if name != "input_ids" and value.dim() == 2 and value.shape == ids.shape:
            outside = torch.full_like(edge, int(name == "attention_mask"), dtype=value.dtype)
            changed[name] = torch.cat([outside, value, outside], 1)
    return {**inputs, **changed}


def _features(recorded: Mapping[str, Any], places: "Tensor") -> ImageFeatures:
    embeddings = recorded["inputs_embeds"][0][places].clone()
    deepstack = tuple(rows.clone() for rows in recorded.get("deepstack_visual_embeds") or ())
    positions, advance = _positions(recorded.get("position_ids"), places)
    blocks, sees_prompt = _visibility(recorded.get("attention_mask"), places)
    return ImageFeatures(embeddings, deepstack, positions, advance, blocks, sees_prompt)


def _positions(position_ids: "Tensor | None", places: "Tensor") -> "tuple[Tensor | None, int]":
    """Return the positions of an image with several axes, and the advance over it."""
    count = int(places.sum())
    if position_ids is None or position_ids.dim() != 3:
        return None, count
    first, last = int(places.nonzero()[0]), int(places.nonzero()[-1])
    if last - first + 1 != count:
        raise UserError("an image with several position axes has text inside")
    axes = position_ids[-3:, 0]  # a fourth axis, before them, has the positions of text
    start = int(axes[:, first - 1].max()) + 1
    return (axes[:, first : last + 1] - start).clone(), int(axes[0, last + 1]) - start


def _visibility(mask: Any, places: "Tensor") -> tuple[tuple[bool, bool], bool]:
    """Return whether the tokens of an image see later ones, in layers without and with a window, and so does text."""
    whole, windowed = (
        (mask.get("full_attention"), mask.get("sliding_attention")) if isinstance(mask, dict) else (mask, mask)
    )
    first = places.nonzero().flatten()
    pairs = [(int(a), int(b)) for a, b in pairwise(first) if int(b) == int(a) + 1]
    blocks = tuple(bool(pairs) and _sees(one, *pairs[0]) for one in (whole, windowed))
    return (blocks[0], blocks[1]), _sees(whole, 0, len(places) - 1)


def _sees(mask: Any, query: int, key: int) -> bool:
    """Return True if a mask lets a token see a later one. No mask means causal attention."""
    import torch

    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return False
    value = mask[0, 0, query, key]
    return bool(value) if mask.dtype == torch.bool else float(value) == 0.0


def load_vision_towers(prepared: "Prepared", language_model: Any) -> VisionTowers:
    """Load the towers of a composite model beside its language model.

    Args:
        language_model: The model that generates text, whose embeddings some towers use.

    Raises:
        UserError: the model takes no images, or its towers are stored in a quantised format.
        ModelError: weights of the towers are missing or damaged.
        MachineError: memory runs out, or a package is missing.
    """
    chosen = compat.composite_model_class(prepared.info.model_type)
    if chosen is None or not prepared.info.towers:
        raise UserError(f"{prepared.plan.source} takes no images", hint="llmctl plan MODEL --images 1 says which do")
    _refuse_packed_towers(prepared)
    with compat.quiet_libraries(), compat.without_peft(), translated_errors(prepared, part="the towers of "):
        model, report = _read_towers(prepared, towers_only(chosen), language_model.dtype)
        model.to(language_model.device).eval()
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{prepared.plan.source} lacks {len(missing)} weights for images, such as {missing[0]}")
    recorder = model.get_submodule(language_model_name(model))
    recorder.use_embeddings(language_model.get_input_embeddings())
    return VisionTowers(model, recorder)


def _read_towers(prepared: "Prepared", model_class: Any, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """Return a composite model without its language model, and transformers' report, from the original files."""
    from transformers import GenerationConfig

    config = read_config(prepared)
    for part in (config, config.get_text_config(decoder=True)):
        if hasattr(part, "quantization_config"):  # that of the language model: `_refuse_packed_towers`
            del part.quantization_config
    model, report = model_class.from_pretrained(
        str(prepared.resolved.folder),
        config=config,
        generation_config=GenerationConfig(),
        local_files_only=True,
        output_loading_info=True,
        use_safetensors=True,
        dtype=dtype,
    )
    return model, report


def _refuse_packed_towers(prepared: "Prepared") -> None:
    """Raise UserError for a pre-quantised checkpoint whose towers are quantised, too."""
    stored = prepared.plan.stored_quantization
    packed = [one.name for one in prepared.info.left_out if one.dtype not in _UNQUANTISED] if stored is not None else []
    if stored is not None and packed:
        raise UserError(
            f"the towers of {prepared.plan.source} are stored in {stored.name}, such as {packed[0]}: llmctl reads "
            "images only with towers that are stored unquantised",
            hint="use the original model with --quant, or a copy whose vision tower is not quantised",
        )


def language_model_name(model: Any) -> str:
    """Return the name of the language model in a composite model: the module that has its configuration."""
    config = model.config.get_text_config(decoder=True)
    found = ((name, module) for name, module in model.named_modules() if getattr(module, "config", None) is config)
    return next(str(name) for name, _ in found if name)


def towers_only(model_class: Any) -> Any:
    """Return a subclass of a composite class, with the same name, whose models have no language model."""

    class TowersOnly(model_class):  # type: ignore[misc] # transformers' classes are untyped
        def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            leave_out_language_model(self)

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(TowersOnly, name, getattr(model_class, name))
    return TowersOnly


def leave_out_language_model(model: Any) -> None:
    """Replace the language model and the output head of an empty composite model by a recorder."""
    from torch import nn

    name, head = language_model_name(model), model.get_output_embeddings()
    names = [name, *(n for n, module in model.named_modules() if module is head and not n.startswith(f"{name}."))]
    compat.forget_tied_weights(model, under=tuple(names))
    recorder = make_recorder(model.get_submodule(name).config, model.dtype)
    for one in names:
        model.set_submodule(one, recorder if one == name else nn.Identity())


def make_recorder(config: Any, dtype: Any) -> Any:
    """Return a module that records the arguments of its calls and ends the pass.

    Args:
        config: The configuration of the language model.
    """
    import torch
    from torch import nn

    class Embeddings(nn.Module):
        """The embeddings of the language model, whose own weights may be quantised."""

        def __init__(self) -> None:
            super().__init__()
            self.look_up: Any = None

        @property
        def weight(self) -> "Tensor":
            """Zeros in the shape of the weights, for code whose result is not used."""
            return torch.zeros((1, 1), dtype=dtype).expand(config.vocab_size, config.hidden_size)

        def forward(self, ids: "Tensor") -> "Tensor":
            rows: Tensor = self.look_up(ids.clamp(0, config.vocab_size - 1))
            return rows

    class Recorder(nn.Module):
        """Stands for a language model."""

        def __init__(self) -> None:
            super().__init__()
            self.config, self.embed_tokens = config, Embeddings()
            self.recorded: dict[str, Any] | None = None

        def use_embeddings(self, embeddings: Any) -> None:
            """Look up embeddings in the module `embeddings`, which belongs to another model."""
            self.embed_tokens.look_up = lambda ids: embeddings(ids)

        def get_input_embeddings(self) -> Any:
            """Return the embeddings."""
            return self.embed_tokens

        def get_per_layer_inputs(self, *_: Any) -> None:
            """Return nothing: the language model computes them from the ids of a pass."""

        def forward(self, *_: Any, **arguments: Any) -> Any:
            self.recorded = arguments
            raise _RecordedError

    return Recorder()
