"""The configuration: its schema, and the layers that make it."""

from llmctl.config.layers import Settings, read_settings, settings_from_mapping
from llmctl.config.schema import (
    ChatSection,
    Config,
    GenerationSection,
    LoadSection,
    ModelSection,
    QuantizationSection,
    TokenizerSection,
)
from llmctl.config.structure import StructureSection
from llmctl.config.vllm import VllmSection

__all__ = [
    "ChatSection",
    "Config",
    "GenerationSection",
    "LoadSection",
    "ModelSection",
    "QuantizationSection",
    "Settings",
    "StructureSection",
    "TokenizerSection",
    "VllmSection",
    "read_settings",
    "settings_from_mapping",
]
