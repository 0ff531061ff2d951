"""Check every architecture of the installed transformers: `python -m support.architectures.sweep [--brief] [TYPE …]`.

Each check runs in a forked process with limits of memory and time. Results are kept as JSON lines, so that a sweep that
was interrupted continues where it ended. Types that are named are checked again. `--brief` makes a third of the checks.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from support.architectures.cases import RESULTS, Case, all_cases, read_results, results_file
from support.architectures.page import write_page

MEMORY_BYTES, CPU_SECONDS, SECONDS = 12 << 30, 400, 900


def run(cases: Sequence[Case], *, processes: int, is_brief: bool) -> Iterator[dict[str, Any]]:
    """Check cases in processes of their own, and yield their results as they finish."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.architectures.preload"])
    waiting, running = list(reversed(cases)), {}
    while waiting or running:
        while waiting and len(running) < processes:
            case = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(case, sender, is_brief), daemon=True)
            process.start()
            sender.close()
            running[receiver] = (case, process, time.monotonic())
        for receiver in wait(list(running), timeout=5):
            assert isinstance(receiver, Connection)
            case, process, _ = running.pop(receiver)
            yield _received(receiver, case, process)
        for receiver, (case, process, started) in list(running.items()):
            if time.monotonic() - started > SECONDS:
                del running[receiver]
                process.kill()
                yield _failure(case, f"no result after {SECONDS} seconds")


def _received(receiver: Connection, case: Case, process: Any) -> dict[str, Any]:
    try:
        return dict(receiver.recv())
    except EOFError:
        process.join()
        return _failure(case, f"the process ended with {process.exitcode}")


def _failure(case: Case, note: str) -> dict[str, Any]:
    return {
        "model_type": case.model_type,
        "is_composite": case.is_composite,
        "cells": {"process": "ERROR"},
        "notes": {"process": note},
        "figures": {},
    }


def _child(case: Case, sender: Connection, is_brief: bool) -> None:
    from support.architectures.checks import BRIEF, FULL, check

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    scope = BRIEF if is_brief else FULL
    with tempfile.TemporaryDirectory() as home:
        os.environ["LLMCTL_HOME"] = home
        document = check(case.model_type, is_composite=case.is_composite, scope=scope).document()
    sender.send(document | {"cpu_seconds": round(time.process_time(), 1), "is_brief": is_brief})


def main() -> int:
    """Check the named types, or all that have no result yet. Return 1 if a cell is wrong or an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    results = read_results(results_file())
    known = {case for case, document in results.items() if options.brief or not document.get("is_brief")}
    names = set(options.types)
    cases = [case for case in all_cases() if (case.model_type in names if names else case not in known)]
    if missing := names - {case.model_type for case in cases}:
        print("this transformers has no", ", ".join(sorted(missing)))
        return 2
    RESULTS.mkdir(exist_ok=True)
    with results_file().open("a", encoding="utf-8") as file:
        for document in run(cases, processes=options.processes, is_brief=options.brief):
            print(json.dumps(document), file=file, flush=True)
            print(line_of(document), flush=True)
    write_page()
    cells = [cell for document in read_results(results_file()).values() for cell in document["cells"].values()]
    return 1 if {"WRONG", "ERROR"} & set(cells) else 0


def line_of(document: dict[str, Any]) -> str:
    """Return a result on one line."""
    kind = " (composite)" if document["is_composite"] else ""
    cells = " ".join(f"{name}={cell}" for name, cell in document["cells"].items() if cell != "yes")
    notes = "; ".join(f"{name}: {note}" for name, note in document["notes"].items())
    return f"{document['model_type']}{kind} {cells or 'all yes'} {notes} ({document.get('cpu_seconds')} s)"


if __name__ == "__main__":
    sys.exit(main())
