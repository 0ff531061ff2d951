"""The answers of plain transformers in float32 to prompts with images."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.vision.conversations import messages, raw_prompt
from support.vision.families import Family
from support.vision.processors import load_processor

NEW_TOKENS = 12


@dataclass(frozen=True)
class Answer:
    """The greedy answer to a prompt.

    Attributes:
        prompt: Token ids of the prompt, images expanded.
        ids: Token ids of the answer.
        logprobs: Their log-probabilities.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Reference:
    """Plain transformers with one checkpoint."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self.processor = load_processor(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, conversation: str, family: Family) -> Answer:
        """Answer one of the conversations of the tests, with a chat template or, for a base model, without."""
        if family.template is not None:
            return self.chat(messages(conversation))
        return self.complete(*raw_prompt(conversation, family.placeholder))

    def chat(self, conversation: Sequence[Mapping[str, Any]], *, new_tokens: int = NEW_TOKENS) -> Answer:
        """Answer messages. Their content is a list of parts: texts, and images as `{"type": "image", "image": …}`."""
        return self.generate(self.chat_inputs(conversation), new_tokens=new_tokens)

    def complete(self, text: str, images: Sequence[Any] = (), *, new_tokens: int = NEW_TOKENS) -> Answer:
        """Continue a text in which the family's placeholder stands for each image."""
        return self.generate(self.text_inputs(text, images), new_tokens=new_tokens)

    def chat_inputs(self, conversation: Sequence[Mapping[str, Any]]) -> Any:
        """Return the tensors of messages."""
        with _numpy_may_copy_tensors():
            return self.processor.apply_chat_template(
                [dict(message) for message in conversation],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )

    def text_inputs(self, text: str, images: Sequence[Any] = ()) -> Any:
        """Return the tensors of a text and its images.

        The images are a list inside a list, as chat templates pass them: the images of one prompt. LLaVA-OneVision
        takes a flat list for as many prompts of one image, and cuts the image of such a prompt into tiles.
        """
        with _numpy_may_copy_tensors():
            return self.processor(text=text, images=[list(images)] if images else None, return_tensors="pt")

    def generate(self, inputs: Any, *, new_tokens: int = NEW_TOKENS) -> Answer:
        """Return the greedy answer to tensors."""
        prompt = tuple(inputs["input_ids"][0].tolist())
        inputs = inputs.to(self.model.dtype)  # Llama 4's images are bfloat16
        output = self.model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        ids = tuple(output.sequences[0, len(prompt) :].tolist())
        logprobs = [row[0].log_softmax(-1) for row in output.logits]
        return Answer(prompt, ids, tuple(float(row[token]) for row, token in zip(logprobs, ids, strict=True)))

    def logprobs(self, inputs: Any, ids: Sequence[int]) -> tuple[float, ...]:
        """Return the log-probability of each of `ids` after the tensors of a prompt."""
        start = inputs["input_ids"].shape[1]
        output = self.model.generate(
            **inputs,
            max_new_tokens=len(ids),
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, known: [ids[len(known) - start]],
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        rows = [row[0].log_softmax(-1) for row in output.logits]
        return tuple(float(row[token]) for row, token in zip(rows, ids, strict=True))


@contextmanager
def _numpy_may_copy_tensors() -> Iterator[None]:
    """Accept what some processors of transformers do, inside the block: they pass tensors to numpy.array."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield
