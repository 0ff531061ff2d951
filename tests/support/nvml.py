"""NVML by hand: the functions that llmctl calls, with cards that are written down."""
# ruff: noqa: N802 (the names are NVML's)

from dataclasses import dataclass, field
from typing import Any

GIB = 2**30
NOT_FOUND, NOT_SUPPORTED, GPU_IS_LOST = 6, 3, 15


@dataclass
class FakeCard:
    """A card or a slice. `memory` is its size in GiB, or an error code as a negative number."""

    name: str
    uuid: str
    capability: tuple[int, int] | None = (8, 9)
    memory: float = 24
    mig: bool = False
    slices: list["FakeCard"] = field(default_factory=list)


class FakeNvml:
    """NVML with these cards. Handles are 1, 2, … for cards, and 101, 102, … for the slices of the first card."""

    def __init__(self, *cards: FakeCard, init: int = 0, count: int = 0) -> None:
        self.cards, self.init, self.count = cards, init, count
        self.by_handle = {number + 1: card for number, card in enumerate(cards)}
        for number, card in enumerate(cards):
            self.by_handle |= {100 * (number + 1) + index + 1: one for index, one in enumerate(card.slices)}

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.cards)
        return self.count

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, handle: Any) -> int:
        handle._obj.value = number + 1
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, _: Any) -> int:
        text.value = self.by_handle[handle.value].name.encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, _: Any) -> int:
        text.value = self.by_handle[handle.value].uuid.encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        capability = self.by_handle[handle.value].capability
        if capability is None:
            return NOT_SUPPORTED
        major._obj.value, minor._obj.value = capability
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        size = self.by_handle[handle.value].memory
        if size < 0:
            return int(-size)
        memory._obj.total = int(size * GIB)
        memory._obj.free = int(size * GIB) - GIB // 2 if size else 0
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> int:
        current._obj.value = pending._obj.value = int(self.by_handle[handle.value].mig)
        return 0 if self.by_handle[handle.value].mig else NOT_SUPPORTED

    def nvmlDeviceGetMaxMigDeviceCount(self, _: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, number: int, slice_handle: Any) -> int:
        slice_handle._obj.value = 100 * handle.value + number + 1
        return 0 if slice_handle._obj.value in self.by_handle else NOT_FOUND


class OldNvml(FakeNvml):
    """A library from before MIG: it lacks the functions."""

    def __getattribute__(self, name: str) -> Any:
        if "Mig" in name:
            raise AttributeError(name)
        return super().__getattribute__(name)
