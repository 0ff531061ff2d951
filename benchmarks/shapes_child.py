"""Measure a checkpoint once with llmctl. The job is read from standard input, the measurements go to standard output.

`modules` runs the modules of transformers with llmctl's kernels for their linear layers, without a compiled program, as
llmctl runs an architecture that has none.
"""

import json
import os
import sys
from typing import Any

import torch

from llmctl.bench.measure import Prompts, measure_cell
from llmctl.bench.task import Cell
from llmctl.config import Config, Settings
from llmctl.generation.engine import engine_for_many, engine_for_one
from llmctl.loading import loader
from llmctl.loading.prepare import prepare


def main() -> None:
    """Load the checkpoint, warm up, and measure one sequence and a batch."""
    job = json.loads(sys.stdin.read())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(job["threads"])
    if job["program"] == "modules":
        loader.compile_model = lambda _: False
    out.write(json.dumps(_measure(job, **job["arguments"])) + "\n")
    out.flush()
    os._exit(0)


def _measure(job: dict[str, Any], *, folder: str, dtype: str, bits: int | None) -> dict[str, Any]:
    prompt, new_tokens, batch = job["prompt_tokens"], job["new_tokens"], job["batch"]
    config = {"model": {"id": folder}, "load": {"dtype": dtype}, "quantization": {"bits": bits}}
    settings = Settings(Config.model_validate(config))
    loaded = loader.load_prepared(prepare(settings, offline=True, context=prompt + new_tokens, batch=batch))
    prompts = Prompts(loaded, 7)
    many = engine_for_many(loaded)
    one = engine_for_one(loaded, prompts.request([3] * prompt, new_tokens))
    for engine, cell in ((one, Cell(prompt, 1)), (many, Cell(16, batch))):
        measure_cell(engine, cell, prompts.requests(cell, 4))
    figures = [
        measure_cell(engine, cell, prompts.requests(cell, new_tokens))
        for engine, cell in ((one, Cell(prompt, 1)), (many, Cell(prompt, batch)))
    ]
    return {
        "prefill": figures[0]["prefill_tokens_per_second"],
        "decode": figures[0]["decode_tokens_per_second"],
        "batch": figures[1]["decode_tokens_per_second"],
    }


if __name__ == "__main__":
    main()
