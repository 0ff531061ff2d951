"""The variables of a chat template, and the values that turn thinking on or off in it.

The variables are found in the template's source: names that it reads before it sets them. The template is not executed,
and even its parsing runs in a child process with limits.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from llmctl.config import ChatSection
from llmctl.errors import LlmctlError, ModelError, UserError, first_line
from llmctl.machine.sandbox import EXTRA_BYTES, SECONDS, FailedError, LimitExceededError, run_bounded
from llmctl.transformers_compat import chat_template_source, own_template_arguments, parse_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Variables = Mapping[str, Sequence[str]]


class _Switch(NamedTuple):
    """A variable that turns thinking on and off, with its two values. None as a value leaves the variable unset."""

    name: str
    on: Any
    off: Any


# The first that a template reads is used. Templates that know several take the later ones for the same.
_SWITCHES = (
    _Switch("enable_thinking", True, False),  # Qwen 3, GLM, Gemma 4, SmolLM 3, Nemotron 3, Command R7B
    _Switch("thinking", True, False),  # DeepSeek V3.1, Granite 3.3, Kimi K3
    _Switch("reasoning", True, False),  # Command A
    _Switch("thinking_mode", "enabled", "disabled"),  # MiniMax M3
    _Switch("thinking_option", "on", "off"),  # Ling
    _Switch("thinking_budget", None, 0),  # Seed-OSS, in tokens; without a value there is no limit
)
_EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
_NO_EFFORT = ("none", "no_think", "off", "minimal")  # the values of a template that mean no thinking, best first


@lru_cache(maxsize=32)
def template_variables(source: str) -> Variables:
    """Return the variables of a template, each with the texts to which the template compares it.

    Raises:
        LlmctlError: the template is not valid, or takes too long to parse.
    """
    try:
        return dict(run_bounded(partial(read_variables, source)))
    except (LimitExceededError, FailedError) as error:
        raise template_error(error) from error


def read_variables(source: str) -> dict[str, list[str]]:
    """Return the variables like `template_variables`, without limits."""
    tree, known = parse_template(source)
    reader = _Reader()
    reader.visit(tree, set(known))
    own = own_template_arguments()
    return {name: sorted(texts) for name, texts in sorted(reader.variables.items()) if name not in own}


def template_error(error: Exception, *, seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> LlmctlError:
    """Return the error for a template that failed, or exceeded these limits."""
    result: LlmctlError
    if isinstance(error, LimitExceededError):
        result = ModelError(
            f"the chat template takes more than {seconds:.0f} seconds or {extra_bytes // 10**9} GB for this prompt",
            hint="it was stopped; --raw omits the template, --template FILE uses another one",
        )
    else:
        result = UserError(
            f"the chat template refuses this conversation: {first_line(error)}",
            hint="some models take no system prompt; --raw omits the template",
        )
    result.__cause__ = error
    return result


def template_arguments(
    tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, template: str | None, *, with_tools: bool = False
) -> dict[str, Any]:
    """Return the variables to give to a template: those of `chat.thinking`, then `chat.template_kwargs`.

    Args:
        template: The text of the configured template; None for the model's.
        with_tools: The conversation has tools; a few models have a separate template for them.

    Raises:
        UserError: the template does not read a variable, or cannot turn thinking on or off. The details have `param`.
    """
    if chat.thinking is None and not chat.template_kwargs:
        return {}
    variables = template_variables(chat_template_source(tokenizer, template, with_tools=with_tools))
    arguments = {} if chat.thinking is None else thinking_arguments(variables, chat.thinking)
    for name in chat.template_kwargs:
        if name not in variables:
            raise _unknown_variable(name, variables)
    return {**arguments, **chat.template_kwargs}


def thinking_arguments(variables: Variables, thinking: bool) -> dict[str, Any]:
    """Return the variables that turn thinking on or off. Raise UserError if the template cannot do that."""
    for switch in _SWITCHES:
        if switch.name in variables:
            value = switch.on if thinking else switch.off
            return {} if value is None else {switch.name: value}
    for name in _EFFORTS:
        if name in variables:
            return _thinking_by_effort(name, variables[name], thinking=thinking)
    raise UserError(
        f"the chat template cannot turn thinking on or off; {_known(variables)}",
        hint="omit --think, --no-think and chat.thinking",
        details={"param": "reasoning_effort"},
    )


def _thinking_by_effort(name: str, texts: Sequence[str], *, thinking: bool) -> dict[str, Any]:
    """Return the effort that turns thinking on or off, among the texts to which the template compares it."""
    off = next((text for text in _NO_EFFORT if text in texts), None)
    if thinking:  # a template that cannot turn it off thinks anyway
        return {name: "high"} if off is not None and "high" in texts else {}
    if off is None:
        raise UserError(
            f"the chat template cannot turn thinking off; it has {name}",
            hint=f"--set 'chat.template_kwargs={{{name}: low}}'",
            details={"param": "reasoning_effort"},
        )
    return {name: off}


def effort_arguments(variables: Variables, effort: str) -> dict[str, Any]:
    """Return the variables for a `reasoning_effort` of OpenAI's API; `none` turns thinking off.

    Raises:
        UserError: the template does not know efforts. The details have `param`.
    """
    name = next((name for name in _EFFORTS if name in variables), None)
    switch = next((switch for switch in _SWITCHES if switch.name in variables), None)
    if effort == "none" and (name is None or effort not in variables[name]):
        return thinking_arguments(variables, False)
    if name is None:
        known = f"the chat template does not know reasoning_effort; {_known(variables)}"
        if switch is not None:
            known += ", so that thinking is on or off: send reasoning_effort none, or chat_template_kwargs"
        raise UserError(known, details={"param": "reasoning_effort"})
    on = {} if switch is None or switch.on is None or effort == "none" else {switch.name: switch.on}
    return {**on, name: effort}


def _unknown_variable(name: str, variables: Variables) -> UserError:
    close = get_close_matches(name, variables, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return UserError(
        f"the chat template has no variable {name[:100]}; {_known(variables)}{guess}",
        details={"param": f"chat_template_kwargs.{name[:100]}"},
    )


def _known(variables: Variables) -> str:
    return f"it has {', '.join(variables)}" if variables else "it has no variables"


class _Reader:
    """Collects the names that a template reads before it sets them. Its state: these names.

    `known` is the set of names that have certainly been set where a node begins. Nodes are handled by the names of
    their classes in jinja2.nodes; unknown ones only contain others.
    """

    def __init__(self) -> None:
        self.variables: dict[str, set[str]] = {}

    def visit(self, node: Any, known: set[str]) -> None:
        """Read a node, and add the names that it sets to `known`."""
        handle = getattr(self, f"_visit_{type(node).__name__}", self._visit_children)
        handle(node, known)

    def _visit_children(self, node: Any, known: set[str]) -> None:
        for child in node.iter_child_nodes():
            self.visit(child, known)

    def _visit_all(self, nodes: Sequence[Any], known: set[str]) -> None:
        for node in nodes:
            self.visit(node, known)

    def _visit_Name(self, node: Any, known: set[str]) -> None:  # noqa: N802 (the names are Jinja's)
        if node.ctx != "load":
            known.add(node.name)
        elif node.name not in known:
            self.variables.setdefault(node.name, set())

    def _visit_NSRef(self, node: Any, known: set[str]) -> None:  # noqa: N802
        if node.name not in known:
            self.variables.setdefault(node.name, set())

    def _visit_Compare(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self._visit_children(node, known)
        subject = node.expr
        while type(subject).__name__ == "Filter":
            subject = subject.node
        name = getattr(subject, "name", None)
        if type(subject).__name__ == "Name" and name in self.variables:
            self.variables[name].update(text for operand in node.ops for text in _texts(operand.expr))

    def _visit_Assign(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self.visit(node.node, known)
        self.visit(node.target, known)

    def _visit_AssignBlock(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self._visit_all(node.body, set(known))
        if node.filter is not None:
            self.visit(node.filter, known)
        self.visit(node.target, known)

    def _visit_If(self, node: Any, known: set[str]) -> None:  # noqa: N802
        ends = []
        for branch in (node, *node.elif_):
            self.visit(branch.test, known)
            ends.append(set(known))
            self._visit_all(branch.body, ends[-1])
        ends.append(set(known))
        self._visit_all(node.else_, ends[-1])
        known |= set.intersection(*ends)

    def _visit_For(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self.visit(node.iter, known)
        inside = {*known, "loop"}
        self.visit(node.target, inside)
        if node.test is not None:
            self.visit(node.test, inside)
        self._visit_all(node.body, inside)
        self._visit_all(node.else_, set(known))

    def _visit_Macro(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self._visit_all(node.defaults, known)
        known.add(node.name)
        self._visit_callee(node, known)

    def _visit_CallBlock(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self.visit(node.call, known)
        self._visit_all(node.defaults, known)
        self._visit_callee(node, known)

    def _visit_callee(self, node: Any, known: set[str]) -> None:
        inside = {*known, "caller", "varargs", "kwargs"}
        self._visit_all(node.args, inside)
        self._visit_all(node.body, inside)

    def _visit_With(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self._visit_all(node.values, known)
        inside = set(known)
        self._visit_all(node.targets, inside)
        self._visit_all(node.body, inside)

    def _visit_FilterBlock(self, node: Any, known: set[str]) -> None:  # noqa: N802
        self._visit_children(node, set(known))

    _visit_Scope = _visit_Block = _visit_FilterBlock  # noqa: N815


def _texts(node: Any) -> Iterator[str]:
    """Yield the strings of a constant or of a list of constants."""
    if type(node).__name__ in ("List", "Tuple"):
        for item in node.items:
            yield from _texts(item)
    elif isinstance(getattr(node, "value", None), str):
        yield node.value
