"""Measure one program once. The job is read from standard input, the measurements are written to standard output.

`_llama_cpp` imports only llama_cpp and NumPy, because it runs in the interpreter that has llama-cpp-python.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# (prompt ids, number of new tokens) -> (seconds to the first token, seconds to the last token, the tokens)
Answer = Callable[[list[int], int], tuple[float, float, list[int]]]


def main() -> None:
    """Load the model, warm up, and measure every prompt of the job."""
    job = json.loads(sys.stdin.read())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    began = time.perf_counter()
    answer: Answer = _PROGRAMS[job["program"]](**job["arguments"], threads=job["threads"])
    load_seconds = time.perf_counter() - began
    if job.get("warm_up"):
        answer(job["warm_up"], 4)
    cells = []
    for ids in job["prompts"]:
        first, last, tokens = answer(ids, job["new_tokens"])
        rate = (len(tokens) - 1) / (last - first) if len(tokens) > 1 else None
        cells.append({"prompt": len(ids), "prefill": len(ids) / first, "decode": rate, "tokens": tokens})
    status = Path("/proc/self/status").read_text()
    sizes = {name: int(status.partition(f"{name}:")[2].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}
    out.write(json.dumps({"load_seconds": load_seconds, "cells": cells, **sizes}) + "\n")
    out.flush()
    os._exit(0)


def _llmctl(*, folder: str, dtype: str, bits: int | None, threads: int) -> Answer:
    import torch

    import llmctl
    from llmctl.bench.measure import Prompts
    from llmctl.generation.stream import stream_request

    torch.set_num_threads(threads)
    loaded = llmctl.load(folder, load={"dtype": dtype}, quantization={"bits": bits}, offline=True)
    prompts = Prompts(loaded, 0)

    def answer(ids: list[int], count: int) -> tuple[float, float, list[int]]:
        chunks = stream_request(loaded, prompts.request(ids, count))
        done = next(chunk.completion for chunk in chunks if chunk.completion is not None)
        return done.first_token_seconds, done.seconds, list(done.token_ids)

    return answer


def _transformers(*, folder: str, dtype: str, bits: int | None, threads: int) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.generation.streamers import BaseStreamer
    from transformers.utils import logging

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None: ...

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    quantization: dict[str, Any] = {}
    if bits == 8:
        quantization["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if bits == 4:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **quantization)
    model.generation_config.eos_token_id = None

    def answer(ids: list[int], count: int) -> tuple[float, float, list[int]]:
        clock, prompt = Clock(), torch.tensor([ids])
        began = time.perf_counter()
        text = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        # a streamer first gets the prompt
        return clock.times[1] - began, clock.times[-1] - began, text[0, len(ids) :].tolist()

    return answer


def _llama_cpp(*, file: str, threads: int) -> Answer:
    """Use llama.cpp's C interface. Between two tokens, Python only computes the argmax."""
    import llama_cpp
    import numpy as np

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 1024, threads, threads
    context = llama_cpp.llama_init_from_model(model, settings)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def step(ids: list[int]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch only points to them
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            raise SystemExit("llama.cpp cannot decode")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(size,)).argmax())

    def answer(ids: list[int], count: int) -> tuple[float, float, list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        began = time.perf_counter()
        tokens = [step(ids)]
        first = time.perf_counter() - began
        while len(tokens) < count:
            tokens.append(step([tokens[-1]]))
        return first, time.perf_counter() - began, tokens

    answer.keep = quiet  # type: ignore[attr-defined]  # the callback must outlive this call
    return answer


_PROGRAMS: dict[str, Callable[..., Answer]] = {
    "llmctl": _llmctl,
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
}

if __name__ == "__main__":
    main()
