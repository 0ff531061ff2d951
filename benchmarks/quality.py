"""Loss of quality by quantisation: the perplexity of English text for each weight format.

The text is Python's language reference as `help()` shows it. The argument is a model's folder or id:

    python benchmarks/quality.py HuggingFaceTB/SmolLM2-135M-Instruct --tokens 20000
"""

import argparse
import json
import math
import time
from pydoc_data.topics import topics
from typing import Any

import llmctl

WINDOW = 512  # tokens per forward pass; each window starts without context
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"bits": None},
    "llmctl 8-bit": {"bits": 8, "backend": "llmctl"},
    "llmctl 4-bit": {"bits": 4, "backend": "llmctl"},
    "llmctl 4-bit, head 4": {"bits": 4, "backend": "llmctl", "head_bits": 4},
    "torch 8-bit": {"bits": 8, "backend": "torch"},
    "torch 4-bit": {"bits": 4, "backend": "torch"},
    "bitsandbytes nf4": {"bits": 4, "backend": "bitsandbytes"},
    "bitsandbytes 8-bit": {"bits": 8, "backend": "bitsandbytes"},
}


def perplexity(loaded: Any, text: str, count: int) -> tuple[float, int]:
    """Return the perplexity of the first `count` tokens of a text, and the number of scored tokens."""
    import torch

    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0, :count]
    total, scored = 0.0, 0
    for start in range(0, len(ids) - 1, WINDOW):
        window = ids[start : start + WINDOW][None]
        with torch.no_grad():
            logits = loaded.model(window).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum")
        total, scored = total + float(losses), scored + window.shape[1] - 1
    return math.exp(total / scored), scored


def main() -> None:
    """Print a line for each weight format, then one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--ways", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    options = parser.parse_args()
    text = "\n\n".join(topics[name] for name in sorted(topics))
    perplexities: dict[str, float] = {}
    for name in options.ways:
        began = time.perf_counter()
        loaded = llmctl.load(options.model, quantization={**FORMATS[name], "cache": False})
        value, scored = perplexity(loaded, text, options.tokens)
        perplexities[name] = value
        baseline = next(iter(perplexities.values()))
        weights = sum(loaded.measured.device_bytes.values()) / 1e6
        print(
            f"{name:<22} {value:9.4f}  {100 * (value / baseline - 1):+6.2f} %  {weights:7.1f} MB  "
            f"{scored} tokens, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    print(json.dumps({"model": options.model, "window": WINDOW, "tokens": scored, "perplexity": perplexities}))


if __name__ == "__main__":
    main()
