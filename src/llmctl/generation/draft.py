"""The draft model at work: what `generate` gets of it, and what two vocabularies have to do with each other."""

from typing import TYPE_CHECKING, Any

from llmctl.generation.request import Request

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel


def draft_arguments(loaded: "LoadedModel", request: Request) -> dict[str, Any]:
    """What `model.generate` gets so that the draft model proposes tokens. Empty where there is none.

    A draft whose context ends before the answer may is left out of this answer.
    """
    draft = loaded.draft
    if draft is None or not fits(loaded, request):
        return {}
    arguments: dict[str, Any] = {"assistant_model": draft.model}
    if has_other_vocabulary(loaded):
        # universal assisted generation: proposals go through text (transformers' generation_strategies)
        arguments |= {"tokenizer": loaded.tokenizer, "assistant_tokenizer": draft.tokenizer}
    return arguments


def fits(loaded: "LoadedModel", request: Request) -> bool:
    """Whether prompt and answer lie in the draft model's context; another vocabulary may take twice the tokens."""
    context = loaded.draft.context_length if loaded.draft else None
    share = 2 if has_other_vocabulary(loaded) else 1
    return context is None or share * (len(request.ids) + request.budget) <= context


def has_other_vocabulary(loaded: "LoadedModel") -> bool:
    """Whether transformers wants both tokenizers: it goes by the size of the vocabulary in the configuration."""
    draft = loaded.draft
    if draft is None:
        return False
    sizes = [model.config.get_text_config().vocab_size for model in (loaded.model, draft.model)]
    return bool(sizes[0] != sizes[1])
