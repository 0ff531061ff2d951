"""The child process of `llmctl doctor`: it imports one package, or asks the Hub, and writes the answer for the parent.

It is run by its path, so that no package in the folder from which llmctl was started takes the place of an installed
one, and imports only the standard library and `machine.child_process` before the package under test. Each line on
standard output is a JSON object, written as soon as it is known: a crash or a hang does not lose what came before.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(question: str, arguments: dict[str, Any], *, limit_seconds: float) -> None:
    """Answer one question, then end without the interpreter's clean-up, in which broken libraries crash."""
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    importlib.import_module("llmctl.platform_support").end_after(limit_seconds + 5)  # the parent may have been killed
    say = importlib.import_module("llmctl.machine.child_process").take_over_stdout()
    try:
        if question == "hub":
            importlib.import_module("llmctl.doctor.hub_questions").ask(say, **arguments)
        elif "probe" in arguments:
            module, _, function = arguments["probe"].partition(":")
            say(facts=getattr(importlib.import_module(module), function)())
        else:
            say(facts=_PACKAGES.get(question, _plain)(question))
        say(done=True)
    except BaseException as error:  # noqa: BLE001 (any exception of a package is the answer, including SystemExit)
        say(failed=_described(error), done=True)
    sys.stderr.flush()
    os._exit(0)


def _described(error: BaseException) -> dict[str, Any]:
    """Return an exception as data. Only the loader's message shows that a compiled file needs another library."""
    message = str(error)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    foreign = isinstance(error, ImportError) and "undefined symbol" in message
    first = (message.strip().splitlines() or [""])[0][:300]
    return {"error": f"{type(error).__name__}: {first}", "missing_module": missing, "foreign_symbols": foreign}


def _plain(name: str) -> dict[str, Any]:
    return {"version": str(getattr(importlib.import_module(name), "__version__", "")) or None}


def _torch(name: str) -> dict[str, Any]:
    torch: Any = importlib.import_module(name)
    facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "xpu": getattr(torch.version, "xpu", None),
        "threads": torch.get_num_threads(),
        "cuda_works": False,
    }
    if torch.version.cuda:
        facts |= {"architectures": torch.cuda.get_arch_list(), **_trial(torch, "cuda", "cuda")}
    elif facts["hip"] or facts["xpu"]:
        facts |= _trial(torch, "cuda" if facts["hip"] else "xpu", "gpu")
    return facts


def _trial(torch: Any, device: str, name: str) -> dict[str, Any]:
    """Compute something on a device; return `<name>_works`, or `<name>_error` with the reason."""
    try:
        getattr(torch, device).init()
        return {f"{name}_works": bool(torch.ones(2, device=device).sum().item() == 2)}
    except Exception as error:  # noqa: BLE001 (torch raises AssertionError, RuntimeError and its own here)
        return {f"{name}_error": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}


def _transformers(name: str) -> dict[str, Any]:
    """Import the classes that load models: transformers imports almost nothing before they are used."""
    transformers: Any = importlib.import_module(name)
    transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # noqa: B018 (the access imports them)
    limits = importlib.import_module("transformers.utils.import_utils")
    kernels = [getattr(limits, f"KERNELS_{end}_VERSION", None) for end in ("MIN", "MAX")]
    return {"version": transformers.__version__, "kernels": kernels}


def _flash_attn(name: str) -> dict[str, Any]:
    """Access the function like transformers does, which loads the compiled file."""
    module: Any = importlib.import_module(name)
    return {"version": module.__version__, "has_function": bool(module.flash_attn_func)}


def _own_kernels(name: str) -> dict[str, Any]:
    """Load llmctl's compiled kernels: a library for another processor can kill the process."""
    module: Any = importlib.import_module(name)
    kernels = module.load()
    return {"isa": kernels.isa if kernels else None, "missing": module.missing()}


_PACKAGES: dict[str, Callable[[str], dict[str, Any]]] = {
    "torch": _torch,
    "transformers": _transformers,
    "flash_attn": _flash_attn,
    "llmctl.cpu.kernels": _own_kernels,
}

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), limit_seconds=float(sys.argv[3]))
