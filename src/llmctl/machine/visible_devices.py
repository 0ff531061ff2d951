"""The cards that CUDA shows a process, and their order: CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER, and MIG. Pure.

Rules: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html; what it leaves open
(repeated numbers, text after a number) is as torch.cuda counts devices; MIG:
https://docs.nvidia.com/datacenter/tesla/mig-user-guide/mig-device-names.html#cuda-device-enumeration.
"""

import re
from collections.abc import Mapping, Sequence

from llmctl.machine.nvml import NvidiaCard

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
# AMD's runtime reads all of these; the first one that hides everything decides.
AMD_VARIABLES = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", VARIABLE)


def hides_everything(setting: str | None) -> bool:
    """Return True for a list of devices without a valid first one, such as an empty one or `-1`."""
    return setting is not None and re.match(r"\s*(\+?\d|GPU-|MIG-)", setting) is None


def visible_cards(cards: Sequence[NvidiaCard], setting: str | None) -> list[NvidiaCard]:
    """Return what CUDA shows of `cards` with this CUDA_VISIBLE_DEVICES.

    Args:
        cards: The cards in CUDA's order of numbers.
    """
    if setting is None:
        return _as_cuda_shows(cards)
    slices = [one for card in cards for one in card.slices]
    for prefix, candidates in (("GPU-", cards), ("MIG-", slices)):
        if setting.startswith(prefix):
            return _as_cuda_shows(_chosen([_with_uuid(item, prefix, candidates) for item in setting.split(",")]))
    return _as_cuda_shows(_chosen([_with_number(item, cards) for item in setting.split(",")]))


def only_cuda_knows(cards: Sequence[NvidiaCard], environment: Mapping[str, str]) -> bool:
    """Return True if what CUDA shows of these cards does not follow from NVML and the environment.

    By default the fastest card comes first, and CUDA does not say how it compares different ones; NVML's order is that
    of the bus. UUIDs have the order of their list. `MIG-GPU-…/1/0` is the form of slices before driver 470.
    """
    setting = environment.get(VARIABLE) or ""
    if setting.startswith(("GPU-", "MIG-")):
        return setting.startswith("MIG-GPU-")
    models = {(card.name, (card.total_bytes or 0) >> 30) for card in cards}
    return len(models) > 1 and environment.get(ORDER) != "PCI_BUS_ID"


def _as_cuda_shows(cards: Sequence[NvidiaCard]) -> list[NvidiaCard]:
    """Replace partitioned cards: CUDA shows only one slice, the first, and no other card beside it."""
    shown = [card.slices[0] if card.slices else card for card in cards if card.slices or not card.is_partitioned]
    first = next((card for card in shown if card.uuid.startswith("MIG-")), None)
    return [first] if first is not None else shown


def _chosen(items: Sequence[NvidiaCard | None]) -> list[NvidiaCard]:
    """Return the cards before the first invalid item; none if one is repeated."""
    valid = list(items[: items.index(None)] if None in items else items)
    cards = [card for card in valid if card is not None]
    return cards if len({id(card) for card in cards}) == len(cards) else []


def _with_number(item: str, cards: Sequence[NvidiaCard]) -> NvidiaCard | None:
    """Return the card with a number; text after its digits is ignored, as by strtoul."""
    number = re.match(r"\+?(\d+)", item.strip())
    return cards[int(number[1])] if number and int(number[1]) < len(cards) else None


def _with_uuid(item: str, prefix: str, candidates: Sequence[NvidiaCard]) -> NvidiaCard | None:
    """Return the only card or slice whose UUID begins with `item`."""
    matching = [card for card in candidates if item.startswith(prefix) and card.uuid.startswith(item)]
    return matching[0] if len(matching) == 1 else None
