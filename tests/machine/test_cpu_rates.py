"""The rates of this computer: measured once, kept for each machine, and measured anew when that is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.cpu.rates import KINDS, KernelRates, Runs
from llmctl.machine import cpu_rates
from llmctl.machine.cpu_rates import CpuRates, read_cpu_rates

FILE = "state/cpu_rates.json"
Plant = Callable[..., list[int]]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Replace the measurement by given results, one after the other; return the list of calls."""

    def planted(*results: KernelRates) -> list[int]:
        calls: list[int] = []

        def measure(*_: Any, **__: Any) -> KernelRates:
            calls.append(1)
            return results[len(calls) - 1]

        monkeypatch.setattr(cpu_rates, "measure_rates", measure)
        monkeypatch.setattr(cpu_rates.kernels, "load", lambda: FakeKernels())
        monkeypatch.setattr(cpu_rates.kernels, "build_key", lambda: "1")
        return calls

    return planted


class FakeKernels:
    isa = "avx2"


def rates_of(rate: float, *, is_disturbed: bool = False) -> KernelRates:
    return KernelRates(dict.fromkeys(KINDS, rate), dict.fromkeys(KINDS, 2 * rate), is_disturbed)


def test_rates_are_measured_once_and_then_read(plant: Plant) -> None:
    calls = plant(rates_of(1e9), rates_of(2e9))
    first, second = read_cpu_rates(), read_cpu_rates()
    assert first == second
    assert first.bandwidth == first.decode["4-bit"] == 1e9
    assert len(first.measured) == len("2026-01-31")
    assert len(calls) == 1


def test_they_are_measured_again_on_request(plant: Plant) -> None:
    plant(rates_of(1e9), rates_of(2e9))
    read_cpu_rates()
    assert read_cpu_rates(again=True).bandwidth == 2e9
    assert read_cpu_rates().bandwidth == 2e9


def test_a_measurement_that_was_disturbed_is_used_but_repeated(plant: Plant) -> None:
    plant(rates_of(1e9, is_disturbed=True), rates_of(2e9))
    assert read_cpu_rates().bandwidth == 1e9
    assert read_cpu_rates().bandwidth == 2e9


def test_disturbed_measurements_add_up_to_the_fastest(plant: Plant) -> None:
    plant(rates_of(2e9, is_disturbed=True), rates_of(1e9, is_disturbed=True), rates_of(1e9, is_disturbed=True))
    assert read_cpu_rates().decode["8-bit"] == 2e9
    assert read_cpu_rates().prefill["8-bit"] == 4e9
    assert read_cpu_rates(again=True).bandwidth == 1e9


def test_each_machine_has_its_own(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = plant(rates_of(1e9), rates_of(2e9))
    for threads, rate in (("1", 1e9), ("2", 2e9), ("1", 1e9)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert read_cpu_rates().bandwidth == rate
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"bandwidth": 0}'])
def test_a_damaged_file_is_replaced(plant: Plant, tmp_path: Path, damage: str) -> None:
    plant(rates_of(1e9), rates_of(2e9))
    read_cpu_rates()
    file = tmp_path / "llmctl-home" / FILE
    [key] = json.loads(file.read_text())
    file.write_text(json.dumps({key: json.loads(damage)}) if "bandwidth" in damage else damage)
    assert read_cpu_rates().bandwidth == 2e9
    assert read_cpu_rates().bandwidth == 2e9


def test_a_state_folder_that_cannot_be_used_stops_nothing(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(rates_of(1e9), rates_of(2e9))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "file"))
    assert read_cpu_rates().bandwidth == 1e9
    assert read_cpu_rates().bandwidth == 2e9


def test_without_kernels_the_bandwidth_of_a_copy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_rates.kernels, "load", lambda: None)
    monkeypatch.setattr(cpu_rates, "measure_ram_bandwidth", lambda **_: 3e9)
    rates = read_cpu_rates()
    assert rates == CpuRates(3e9, measured=rates.measured)
    assert read_cpu_rates() == rates


def test_runs_without_a_processor_do_not_count() -> None:
    runs = Runs(threads=2, shares_memory=True)
    for seconds, processor in ((0.9, 0.9), (1.0, 1.98), (1.1, 2.2), (8.0, 2.0)):
        runs.add(seconds=seconds, processor_seconds=processor)
    assert runs.best() == 1.0, "the first run had one processor, and its time is no measurement"


@pytest.mark.parametrize(("shares_memory", "expected"), [(True, 2**0.5), (False, 1.0)])
def test_if_all_runs_are_disturbed_the_processor_time_tells(shares_memory: bool, expected: float) -> None:
    runs = Runs(threads=2, shares_memory=shares_memory)
    runs.add(seconds=2.0, processor_seconds=2.0)
    assert runs.best() == pytest.approx(expected)
