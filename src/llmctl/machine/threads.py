"""The threads of a computation on the CPU: their number, and how they wait for each other."""

import math
import os

from llmctl.platform_support import read_system_file, usable_cpus

# Threads that wait for each other spin for a millisecond before they sleep (libgomp's default). If another
# program uses one of the cores, a token takes five times as long; a shorter spin has no cost.
THREAD_ENVIRONMENT = {"GOMP_SPINCOUNT": "5000"}


def physical_cores() -> int:
    """Return the number of physical cores, at least one."""
    import psutil

    return psutil.cpu_count(logical=False) or 1


def usable_cores() -> int:
    """Return the cores this process may use: its affinity, or less under a container's CPU quota (cgroup v2)."""
    try:
        quota, period = read_system_file("/sys/fs/cgroup/cpu.max").split()
        limit = math.inf if quota == "max" else max(math.ceil(int(quota) / int(period)), 1)
    except ValueError:
        limit = math.inf
    return int(min(usable_cpus(), limit))


def computing_threads() -> int:
    """Return the threads that torch will use: OMP_NUM_THREADS, else the physical cores this process may use."""
    variable = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if variable.isdecimal() and int(variable):
        return int(variable)
    return max(min(physical_cores(), usable_cpus()), 1)


def use_threads_of_recording(count: int) -> None:
    """Let torch use `count` threads if this computer has that many: the order of summation depends on the number."""
    import torch

    if count <= (os.cpu_count() or 1):
        torch.set_num_threads(count)
