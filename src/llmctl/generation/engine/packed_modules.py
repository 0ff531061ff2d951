"""A packed pass of a model that runs module by module.

Linear layers, norms and MLPs compute all tokens together. Attention reads each sequence's pages. Layers with a
recurrent or convolutional state run sequence by sequence; those that add one token to a state run together. A RoPE
that depends on the length of a sequence is computed for each sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.layer_states import new_layer_state
from llmctl.generation.engine.layout import Layout
from llmctl.gpu.paged_attention import attention_of_model
from llmctl.loading.attention import KeysChangedError, PackedPass, packed_attention
from llmctl.loading.attention_mask import UnsupportedAttentionError, VisibleTokens
from llmctl.rope import rope_by_sequence, rope_depends_on_length
from llmctl.transformers_compat import (
    cache_argument,
    counts_cached_tokens,
    takes_registered_attention,
    uses_recurrent_state,
)

if TYPE_CHECKING:
    from torch import Tensor


class _Traits:
    """The properties of a model that its packed passes depend on.

    Attributes:
        recurrent: Layers with a recurrent or convolutional state.
        ropes: Modules that compute RoPEs which depend on the length of the sequence.
        positions: Embeddings of positions that count on from the cache.
        gathers: True if layers change keys or values after they were cached, as latent attention does.
        masks: True if layers compute attention in their own code. They then attend to all keys of all sequences, with a
            mask that hides those of the other sequences.
        embeddings: The embeddings of tokens.
        layers: The decoder layers.
        is_spread: True if its modules are on several devices.
        by_token: True if the layers with a state cannot add several tokens to a state, so that they add one at a time.
            Mamba 1 computes such tokens as if they began a sequence (modeling_mamba.py, transformers 5.24).
    """

    def __init__(self, model: Any) -> None:
        modules = list(model.modules())
        self.recurrent = [module for module in modules if uses_recurrent_state(module)]
        self.ropes = [module for module in modules if rope_depends_on_length(module)]
        self.positions = [module for module in modules if counts_cached_tokens(module)]
        self.masks = not takes_registered_attention(model) and not self.recurrent
        self.gathers = self.masks
        self.by_token = False
        # the language model inside a composite has no hf_device_map of its own
        self.is_spread = len({parameter.device for parameter in model.parameters()}) > 1
        self.embeddings = model.get_input_embeddings()
        self.layers = list(getattr(model.get_decoder(), "layers", ()))


_TRAITS: "WeakKeyDictionary[Any, _Traits]" = WeakKeyDictionary()


def _traits_of(model: Any) -> _Traits:
    if model not in _TRAITS:
        _TRAITS[model] = _Traits(model)
    return _TRAITS[model]


def has_recurrent_state(model: Any) -> bool:
    """Return True if any layer keeps a state that cannot be cut back to an earlier token."""
    return bool(_traits_of(model).recurrent)


def page_tokens(model: Any) -> int:
    """Return the number of tokens of a page of the KV cache that the model's attention can read."""
    return attention_of_model(model).page_tokens


def hides_other_sequences(model: Any) -> bool:
    """Return True if tokens score those of all packed sequences, and a mask hides the other sequences."""
    return _traits_of(model).masks


def why_not_recorded(model: Any) -> str | None:
    """Return why a decode step of a model cannot be recorded as a graph; None if nothing is known against it."""
    traits = _traits_of(model)
    reasons = {
        "its RoPE depends on the length of the sequence": bool(traits.ropes),
        "its layers attend to keys that are gathered anew": traits.gathers,
        "it is on several devices": traits.is_spread,
        "LLM.int8 looks for outliers in every pass": bool(getattr(model, "is_loaded_in_8bit", False)),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def add_tokens_one_by_one(model: Any) -> None:
    """Make layers with a recurrent state add tokens to an earlier state one at a time."""
    _traits_of(model).by_token = True


def forward_modules(model: Any, layout: Layout, pool: CachePool) -> "Tensor":
    """Run the model and return the logits [sequences, vocabulary] after the last token of each sequence.

    Raises:
        UnsupportedAttentionError: the model's layers cannot be packed.
    """
    traits = _traits_of(model)
    if not traits.gathers:
        try:
            return _forward(model, traits, layout, pool)
        except KeysChangedError:
            traits.gathers = True
    return _forward(model, traits, layout, pool)


def _forward(model: Any, traits: _Traits, layout: Layout, pool: CachePool) -> "Tensor":
    import torch

    moved = layout.on(model.device)
    packed = PackedPass(pool.kv, layout, attention_of_model(model), gathers=traits.gathers)
    cache = _packed_cache(layout, pool, packed)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if not traits.masks:
            stack.enter_context(packed_attention(model, packed))
        run = _RecurrentPass(model, moved, pool, cache, by_token=traits.by_token)
        for module in traits.recurrent:
            stack.enter_context(_replaced_forward(module, partial(run, module.forward)))
        for module in traits.ropes:
            stack.enter_context(_replaced_forward(module, partial(_rope_by_sequence, module.forward, layout)))
        if layout.media is not None:
            stack.enter_context(_replaced_forward(traits.embeddings, partial(_embed, traits.embeddings.forward, moved)))
            for rows, layer in zip(layout.media.deepstack, traits.layers, strict=False):
                stack.enter_context(_replaced_forward(layer, partial(_add_rows, layer.forward, layout, rows)))
        for module in traits.positions:
            stack.enter_context(_replaced_forward(module, partial(_embed_positions, module.forward, moved)))
        output = model(
            input_ids=moved.input_ids,
            position_ids=moved.position_ids,
            use_cache=True,
            # an index on the CPU fits the device of the last layer, whichever that is
            logits_to_keep=layout.last if traits.is_spread else moved.last,
            **({"attention_mask": _mask_of_sequences(moved, model.dtype)} if traits.masks else {}),
            **{cache_argument(model): cache},
        )
    logits: Tensor = output.logits[0]
    if layout.max_query == 1:
        return logits
    # a few classes ignore logits_to_keep (Qwen3OmniMoeThinkerForConditionalGeneration)
    return logits[layout.on(logits.device).last] if len(logits) == layout.query_starts[-1] else logits


def _mask_of_sequences(layout: Layout, dtype: Any) -> "Tensor":
    """Return the mask [1, 1, tokens, cached tokens of all sequences] to add to scores: each token sees its sequence."""
    import torch

    mask = torch.full((layout.query_starts[-1], sum(layout.kv_lengths)), torch.finfo(dtype).min, dtype=dtype)
    begin = 0
    for (first, end), length in zip(pairwise(layout.query_starts), layout.kv_lengths, strict=True):
        own = mask[first:end, begin : begin + length]
        own.masked_fill_(VisibleTokens().mask(end - first, length), 0)
        begin += length
    return mask[None, None].to(layout.input_ids.device)


@contextmanager
def _replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward function of a module inside the `with` block."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _packed_cache(layout: Layout, pool: CachePool, packed: PackedPass) -> Any:
    """Return a transformers cache that writes new keys and values to the pool."""
    from transformers import Cache

    class PackedCache(Cache):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(layers=[])

        def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
            pool.write(layer_idx, key_states, value_states, layout)
            if packed.gathers:
                return pool.gather(layer_idx, layout)
            packed.record(layer_idx, key_states, value_states)
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 0

        def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
            return False

        def _refuse(self, *_: Any, **__: Any) -> Any:
            raise UnsupportedAttentionError("a layer whose state is not known")

        update_conv_state = update_recurrent_state = update_indexer = get_conv_state = get_recurrent_state = _refuse

    return PackedCache()


class _RecurrentPass:
    """Runs the layers with a recurrent state in a packed pass. Called in place of each layer's forward function."""

    def __init__(self, model: Any, layout: Layout, pool: CachePool, cache: Any, *, by_token: bool) -> None:
        self._config, self._layout, self._pool, self._cache = model.config.get_text_config(), layout, pool, cache
        self._by_token = by_token

    def __call__(self, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        outputs: list[list[Any]] = [[] for _ in self._layout.kv_lengths]
        for group in self._groups:
            states = _GroupStates(self._config, self._pool, group)
            for rows in self._steps(group):
                place = partial(self._place, rows, states)
                result = forward(*map(place, arguments), **{name: place(value) for name, value in keywords.items()})
                if group.is_whole:
                    states.store()
                    return _map_tensors(result, _turned)
                for number, sequence in enumerate(group.numbers):
                    outputs[sequence].append(_map_tensors(result, itemgetter(slice(number, number + 1))))
            states.store()
        return _join([part for parts in outputs for part in parts])

    @cached_property
    def _groups(self) -> "list[_Group]":
        """The sequences that run together: those that add one token; the others alone."""
        layout = self._layout
        rows = [slice(a, b) for a, b in pairwise(layout.query_starts)]
        counts = [row.stop - row.start for row in rows]
        begins = [length == count for length, count in zip(layout.kv_lengths, counts, strict=True)]
        decoding = [n for n, count in enumerate(counts) if count == 1 and not begins[n]]
        others = [[n] for n, count in enumerate(counts) if count > 1 or begins[n]]
        is_whole = len(decoding) == len(rows)
        return [
            _Group(
                numbers,
                [rows[n] for n in numbers],
                layout.state_slots.long() if is_whole else layout.state_slots[numbers].long(),
                highest=max(layout.slot_numbers[n] for n in numbers),
                begins=begins[numbers[0]],
                is_whole=is_whole,
            )
            for numbers in ([decoding] if decoding else []) + others
        ]

    def _steps(self, group: "_Group") -> list[list[slice]]:
        """Return the rows of each call of the layer for a group."""
        if self._by_token and not group.begins and len(group.rows) == 1:
            return [[slice(n, n + 1)] for n in range(group.rows[0].start, group.rows[0].stop)]
        return [group.rows]

    def _place(self, rows: list[slice], states: "_GroupStates", value: Any) -> Any:
        """Return an argument of the layer for the rows of a call: its part of a tensor of all tokens, or its cache."""
        import torch

        tokens = self._layout.query_starts[-1]

        def select(tensor: "Tensor") -> "Tensor":
            if tensor.dim() < 2 or tensor.shape[:2] != (1, tokens):
                return tensor
            return _turned(tensor) if states.group.is_whole else torch.cat([tensor[:, row] for row in rows])

        return states.cache if value is self._cache else _map_tensors(value, select)


def _turned(tensor: "Tensor") -> "Tensor":
    """Return [1, tokens, ...] as sequences of one token, [tokens, 1, ...], or the reverse."""
    return tensor.transpose(0, 1)


@dataclass(frozen=True)
class _Group:
    """Sequences that run together through a layer with a recurrent state.

    Attributes:
        numbers: Their numbers in the pass.
        rows: Their tokens.
        slots: int64, the slots of their states.
        highest: The highest of these.
        begins: True if their first tokens are in this pass.
        is_whole: True if they are all sequences of the pass, with one token each.
    """

    numbers: list[int]
    rows: list[slice]
    slots: "Tensor"
    highest: int
    begins: bool
    is_whole: bool


class _GroupStates:
    """The states of a group of sequences, as a cache of transformers. Its state: the layers that were used.

    Attributes:
        cache: The cache for one call of a layer.
    """

    def __init__(self, config: Any, pool: CachePool, group: _Group) -> None:
        from transformers import Cache

        self._config, self._pool, self.group = config, pool, group
        self._used: dict[int, Any] = {}
        states = self

        class Layers(list[Any]):
            def __getitem__(self, index: Any) -> Any:
                return states._layer(index)

            def __len__(self) -> int:
                return int(config.num_hidden_layers)

        class GroupCache(Cache):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(layers=[])
                self.layers = Layers()

        self.cache = GroupCache()

    def _layer(self, index: int) -> Any:
        if index not in self._used:
            new = self.group.begins
            self._used[index] = (
                new_layer_state(self._config, index) if new else self._pool.read_state(index, self.group.slots)
            )
        return self._used[index]

    def store(self) -> None:
        """Write the states of the used layers to the pool."""
        for index, layer in self._used.items():
            self._pool.write_state(index, self.group.slots, layer, highest=self.group.highest)


def _embed(forward: Callable[..., Any], layout: Layout, ids: Any, *rest: Any, **options: Any) -> Any:
    """Return the embeddings of the tokens of a pass, with the rows of images in their places."""
    media, embedded = layout.media, forward(ids, *rest, **options)
    if media is None or ids.shape[-1] != layout.query_starts[-1]:
        return embedded
    embedded = embedded.clone()
    embedded[0, list(media.tokens)] = media.embeddings.to(embedded.device, embedded.dtype)
    return embedded


def _add_rows(forward: Callable[..., Any], layout: Layout, rows: "Tensor", *arguments: Any, **options: Any) -> Any:
    """Return the output of a layer with rows added to the hidden states of the tokens of images."""
    output = forward(*arguments, **options)
    hidden = (output[0] if isinstance(output, tuple) else output).clone()
    tokens = list(layout.media.tokens) if layout.media is not None else []
    hidden[0, tokens] += rows.to(hidden.device, hidden.dtype)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _embed_positions(forward: Callable[..., Any], layout: Layout, x: Any, *_: Any, **__: Any) -> Any:
    return forward(x, position_ids=layout.position_ids[0])


def _rope_by_sequence(forward: Callable[..., Any], layout: Layout, x: Any, position_ids: Any, *rest: Any) -> Any:
    if position_ids.shape[-1] != layout.query_starts[-1]:
        raise UnsupportedAttentionError("positions of other tokens")
    return rope_by_sequence(forward, x, position_ids, *rest, starts=layout.query_starts, lengths=layout.rope_lengths)


def _map_tensors(value: Any, function: Callable[["Tensor"], "Tensor"]) -> Any:
    """Apply a function to a tensor, or to each tensor of a tuple or list."""
    import torch

    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(one, function) for one in value)
    return value


def _join(outputs: list[Any]) -> Any:
    """Join the outputs of a layer for each sequence along the tokens."""
    import torch

    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(outputs, dim=1)
    if isinstance(first, tuple | list):
        return type(first)(_join(list(ones)) for ones in zip(*outputs, strict=True))
    return first
