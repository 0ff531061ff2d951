"""The features of images, computed once for each image and kept within a bound of memory."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.loading.vision import ImageFeatures, VisionTowers, load_vision_towers
from llmctl.loading.weights import translated_out_of_memory
from llmctl.plan.images import FEATURE_CACHE_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.loading.model import LoadedModel

_MAX_SHAPES = 65536


class ImageEncoder:
    """Gives the features of images. Its state: the towers, once an image has come, and the features of the last images.

    Attributes:
        encoded: Number of images that passed through the towers.
    """

    def __init__(self, loaded: "LoadedModel", *, max_bytes: int = FEATURE_CACHE_BYTES) -> None:
        self._prepared, self._model, self._max_bytes = loaded.prepared, loaded.model, max_bytes
        self._towers: VisionTowers | None = None
        self._kept: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._shapes: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._lock = Lock()
        self.encoded = 0

    def towers(self) -> VisionTowers:
        """Return the towers, which are loaded with the first call. Errors are those of `load_vision_towers`."""
        with self._lock:
            if self._towers is None:
                self._towers = load_vision_towers(self._prepared, self._model)
            return self._towers

    def features(self, key: str, inputs: "Mapping[str, Tensor]", token_id: int) -> ImageFeatures:
        """Return the features of an image.

        Args:
            key: The hash of everything that determines the features.
            inputs: The arguments of the composite model for this image.
            token_id: The placeholder token.
        """
        known = self._kept.get(key)
        if known is None:
            with translated_out_of_memory(self._prepared, doing="encoding an image with"):
                known = self.towers().features(inputs, token_id)
            self.encoded += 1
        self._kept[key] = known
        self._kept.move_to_end(key)
        self._shapes[key] = replace(known, embeddings=known.embeddings[:0].clone(), deepstack=())
        while len(self._kept) > 1 and sum(one.size_bytes for one in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)
        while len(self._shapes) > _MAX_SHAPES:
            self._shapes.popitem(last=False)
        return known

    def shape(self, key: str, inputs: "Mapping[str, Tensor]", token_id: int) -> ImageFeatures:
        """Return the positions and the visibility of an image's tokens, without its rows."""
        known = self._shapes.get(key)
        return self.features(key, inputs, token_id) if known is None else known


_ENCODERS: "WeakKeyDictionary[Any, ImageEncoder]" = WeakKeyDictionary()


def image_encoder(loaded: "LoadedModel") -> ImageEncoder:
    """Return the image encoder of a model in memory."""
    if loaded.model not in _ENCODERS:
        _ENCODERS[loaded.model] = ImageEncoder(loaded)
    return _ENCODERS[loaded.model]
