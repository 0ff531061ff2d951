"""A model that says what a script says: after each word its next one, so that real requests have known answers."""

from collections.abc import Sequence
from pathlib import Path

from support.tiny import write_model

_WIDTH = 512  # of the hidden states: each token has a place of its own in them


def write_scripted(folder: Path, replies: dict[str, Sequence[str]], *, template: str) -> Path:
    """A real Llama in whose weights replies are written.

    A token's embedding is one-hot, attention and feed-forward add nothing, and the last layer leads from each word to
    the next. Whatever is not in the script is followed by anything: other tokens get small random weights.

    Args:
        folder: Where it goes.
        replies: Token by token what is said after a word with which the template ends a prompt. A word stands in one
            reply once.
        template: The chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_model(
        folder,
        dtype="float32",
        hidden_size=_WIDTH,
        vocab_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([*replies, *dict.fromkeys(word for reply in replies.values() for word in reply)])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(_WIDTH))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        torch.manual_seed(0)
        model.lm_head.weight.normal_(0, 0.1)
        for start, reply in replies.items():
            words = tokenizer.convert_tokens_to_ids([start, *reply])
            for word, following in zip(words, [*words[1:], tokenizer.eos_token_id], strict=True):
                model.lm_head.weight[following, word] = 2.0
    model.save_pretrained(folder)
    return folder
