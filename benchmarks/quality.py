"""What quantising costs in quality: the perplexity of English text under each way to store the weights.

The text comes with Python: the language reference that `help()` shows. Run it with a model's folder or id:

    python benchmarks/quality.py HuggingFaceTB/SmolLM2-135M-Instruct --tokens 20000
"""

import argparse
import json
import math
import time
from pydoc_data.topics import topics
from typing import Any

import llmctl

WINDOW = 512  # tokens that are read at once; each window begins without context
WAYS: dict[str, dict[str, Any]] = {
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
    """The perplexity of the first `count` tokens of `text`, and how many were scored."""
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
    """Print a line for each way, and one JSON document at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    text = "\n\n".join(topics[name] for name in sorted(topics))
    found: dict[str, float] = {}
    for way in asked.ways:
        began = time.perf_counter()
        loaded = llmctl.load(asked.model, quantization={**WAYS[way], "cache": False})
        found[way], scored = perplexity(loaded, text, asked.tokens)
        first = next(iter(found.values()))
        weights = sum(loaded.measured.device_bytes.values()) / 1e6
        print(
            f"{way:<22} {found[way]:9.4f}  {100 * (found[way] / first - 1):+6.2f} %  {weights:7.1f} MB  "
            f"{scored} tokens, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    print(json.dumps({"model": asked.model, "window": WINDOW, "tokens": scored, "perplexity": found}))


if __name__ == "__main__":
    main()
