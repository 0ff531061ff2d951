"""Check a GPU: are results right, how near to the card's limits is the speed, and what happens without memory?

    python benchmarks/gpu.py                       # all steps, at most 8 minutes; also: make gpu-check
    python benchmarks/gpu.py --steps "single stream" "many sequences"
    python benchmarks/gpu.py --tiny                # the same steps with tiny models on the CPU, to test this check

It needs no network and no model: checkpoints with random weights are written to a temporary folder (16 GB). After every
step a JSON document is written to standard output, as one line. `llmctl doctor --gpu-check` runs the same.
"""

import argparse
import json
import sys

from llmctl.bench.gpu_check import require_gpu, run_check
from llmctl.bench.gpu_check.run import TOTAL_SECONDS
from llmctl.bench.gpu_check.steps import all_steps
from llmctl.errors import MachineError
from llmctl.machine.detection import read_machine


def main() -> None:
    """Run the check and print its documents. Exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="maximum duration of all steps")
    names = [step.name for step in all_steps()]
    parser.add_argument("--steps", nargs="+", choices=names, default=[], metavar="STEP", help=", ".join(names))
    options = parser.parse_args()
    if not options.tiny:
        try:
            require_gpu(read_machine())
        except MachineError as error:
            print(error.message, file=sys.stderr)
            sys.exit(error.exit_code)
    good = True
    for report in run_check(tiny=options.tiny, seconds=options.seconds, names=options.steps):
        print(json.dumps(report.document(), ensure_ascii=False), flush=True)
        good = good and report.is_good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
