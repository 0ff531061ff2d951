"""The class of a model that generates text; for a composite model, its class without towers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmctl import transformers_compat as compat
from llmctl.model.towers import tower_of


def model_loader(model_type: str, *, trust_remote_code: bool) -> Any:
    """Return the class whose `from_pretrained` loads a model for text.

    Args:
        trust_remote_code: True to load a model whose code is in its repository.
    """
    from transformers import AutoModelForCausalLM

    chosen = compat.text_model_class(model_type) if compat.knows_architecture(model_type) else None
    if chosen is None or trust_remote_code or not chosen.is_composite:
        return AutoModelForCausalLM
    return without_towers(chosen.model_class)


def without_towers(model_class: Any) -> Any:
    """Return a subclass of a composite class, with the same name, whose models have placeholders instead of towers."""

    class TextOnly(model_class):  # type: ignore[misc] # transformers' classes are untyped
        def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
            with _placeholders_for_missing_packages():
                super().__init__(config, *arguments, **options)
            leave_out_towers(self)

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(TextOnly, name, getattr(model_class, name))  # what is saved, and messages, have transformers' name
    return TextOnly


def leave_out_towers(model: Any) -> None:
    """Replace the towers of an empty model by placeholders without weights."""
    model_type, towers = model.config.model_type, []
    for name, _ in model.named_modules():
        tower = tower_of(f"{name}.", model_type)
        if tower == name:
            towers.append(name)
    for name in towers:
        model.set_submodule(name, _placeholder(name))
    compat.forget_tied_weights(model, under=tuple(towers))


def text_generator(model: Any) -> Any:
    """Return the part of a loaded composite model that generates text: the model, or the language model inside it.

    Some composite classes hold a complete language model with its own output head. Its forward pass is that of the
    composite for text; Llama4ForConditionalGeneration itself fails without images (transformers 5.24, image_outputs).
    """
    for name in ("language_model", "text_model"):
        inner: Any = getattr(model, name, None)
        if hasattr(inner, "can_generate") and inner.can_generate() and inner.get_output_embeddings() is not None:
            return inner
    return model


def _placeholder(name: str) -> Any:
    from torch import nn

    class LeftOutTower(nn.Module):
        """Stands for a tower that is not in memory."""

        def forward(self, *_: Any, **__: Any) -> Any:
            """Raise RuntimeError."""
            raise RuntimeError(f"{name} is not in memory: llmctl loads the language model of a composite model")

    return LeftOutTower()


@contextmanager
def _placeholders_for_missing_packages() -> Iterator[None]:
    """Let a composite model be built without the package of its vision tower (timm, for example)."""
    from transformers import AutoModel

    original = AutoModel.from_config

    def from_config(config: Any, **options: Any) -> Any:
        try:
            return original(config, **options)
        except ImportError:
            return _placeholder(str(config.model_type))

    AutoModel.from_config = from_config
    try:
        yield
    finally:
        AutoModel.from_config = original
