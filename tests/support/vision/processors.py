"""Loads the processor of a checkpoint with transformers alone, without torchvision too."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_processor(folder: Path) -> Any:
    """Return the processor of a checkpoint.

    Without torchvision, AutoProcessor refuses classes that can also read videos, and PixtralProcessor, whose code does
    not need it. Their parts for images are loaded one by one.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    cls = _processor_class(folder)
    if is_torchvision_available() or not ("video_processor" in cls.get_attributes() or _is_forbidden(cls)):
        return AutoProcessor.from_pretrained(folder)
    images_only = _without_videos(cls)
    settings, _ = images_only.get_processor_dict(folder)
    parts = [_part(name, folder) for name in images_only.get_attributes()]
    return images_only.from_args_and_dict(parts, settings)


class _NoVideos(dict[str, Any]):
    """Stands where a processor has its video processor, which needs torchvision. Written to JSON, it is {}."""

    model_input_names: tuple[str, ...] = ()
    num_frames = None
    fps = None


def _processor_class(folder: Path) -> Any:
    """Return the class that a checkpoint names, and not the placeholder that refuses to be used without a package."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    files = [folder / "processor_config.json", folder / "preprocessor_config.json"]
    settings = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    name = next(one["processor_class"] for one in settings if "processor_class" in one)
    types = [model_type for model_type, class_name in PROCESSOR_MAPPING_NAMES.items() if class_name == name]
    for part in map(model_type_to_module_name, types):
        module = f"transformers.models.{part}.processing_{part}"
        if importlib.util.find_spec(module) is not None:
            with _pillow_for_torchvision(part):
                return getattr(importlib.import_module(module), name)
    raise ValueError(f"transformers has no {name}")


@contextmanager
def _pillow_for_torchvision(part: str) -> Iterator[None]:
    """Let a processor import functions of its image processor from the module for Pillow, inside the block.

    Those of Pixtral, and of Gemma 4 in older versions, import them from the module for torchvision, where they are too.
    """
    from transformers.utils import is_torchvision_available

    prefix = f"transformers.models.{part}.image_processing_"
    if is_torchvision_available() or importlib.util.find_spec(f"{prefix}pil_{part}") is None:
        yield
        return
    sys.modules[prefix + part] = importlib.import_module(f"{prefix}pil_{part}")
    try:
        yield
    finally:
        del sys.modules[prefix + part]


def _is_forbidden(cls: Any) -> bool:
    import transformers

    return getattr(transformers, cls.__name__) is not cls


def _without_videos(cls: Any) -> Any:
    """Return a subclass that takes `_NoVideos` for a video processor."""

    def check(self: Any, name: str, part: Any) -> Any:
        is_missing = isinstance(part, _NoVideos)
        return _NoVideos if is_missing else super(subclass, self).check_argument_for_proper_class(name, part)

    names = classmethod(lambda _: cls.get_attributes())
    subclass = type(cls.__name__, (cls,), {"check_argument_for_proper_class": check, "get_attributes": names})
    return subclass


def _part(name: str, folder: Path) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    loaders = {
        "image_processor": AutoImageProcessor,
        "tokenizer": AutoTokenizer,
        "feature_extractor": AutoFeatureExtractor,
    }
    return _NoVideos() if name == "video_processor" else loaders[name].from_pretrained(folder)
