"""The fields of a request that determine how its conversation is rendered by the chat template."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from llmctl.config import ChatSection
from llmctl.generation.prompt import Ending, template_text
from llmctl.generation.template_variables import Variables, effort_arguments, template_variables
from llmctl.server.fields import Body, Refused
from llmctl.server.http_errors import RequestError
from llmctl.transformers_compat import chat_template_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Effort = Annotated[str, Field(min_length=1, max_length=40)]
TemplateVariables = Annotated[dict[str, Any], Field(max_length=100)]
_Document = Annotated[dict[str, Any], Field(max_length=100)]
_IN_VARIABLES = 'use chat_template_kwargs, for example {"enable_thinking": false}, or reasoning_effort none'


class TemplateFields(Body):
    """Fields about the chat template and the end of the rendered conversation."""

    reasoning_effort: Effort | None = Field(
        None,
        description="Effort for thinking: low, medium, high or another value that the chat template takes; none turns "
        "thinking off. Refused if the template has no variable for it.",
    )
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Variables of the chat template. One that the template does not read is refused."
    )
    documents: Annotated[list[_Document], Field(max_length=1000)] | None = Field(
        None, description="Documents for a chat template that takes them; refused otherwise."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Begin the assistant's turn (default: true, unless the final message is continued)."
    )
    continue_final_message: bool | None = Field(
        None, description="Continue the final message (default: true for a message of the assistant)."
    )
    chat_template: Annotated[None, Refused("the server's configuration has the chat template")] = None
    enable_thinking: Annotated[None, Refused(_IN_VARIABLES)] = None
    thinking: Annotated[None, Refused(_IN_VARIABLES)] = None
    thinking_token_budget: Annotated[None, Refused(_IN_VARIABLES)] = None
    mm_processor_kwargs: Annotated[None, Refused("only text")] = None
    media_io_kwargs: Annotated[None, Refused("only text")] = None

    @field_validator("continue_final_message")
    @classmethod
    def _only_one_ending(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("add_generation_prompt"):
            raise ValueError("cannot be combined with add_generation_prompt: true")
        return value

    @property
    def ending(self) -> Ending | None:
        """The end of the rendered conversation; None for the default."""
        if self.continue_final_message:
            return "inside"
        if self.add_generation_prompt is not None:
            return "turn" if self.add_generation_prompt else "after"
        return None if self.continue_final_message is None else "turn"

    def chat_section(
        self, tokenizer: "PreTrainedTokenizerBase", chat: ChatSection, *, with_tools: bool = False
    ) -> ChatSection:
        """Return the configured chat section with the variables of the request.

        Raises:
            RequestError, UserError: the template does not have a variable.
        """
        given = dict(self.chat_template_kwargs or {})
        template = template_text(chat)
        if (self.documents is None and self.reasoning_effort is None) or not (template or tokenizer.chat_template):
            return _with_variables(chat, given)
        variables = template_variables(chat_template_source(tokenizer, template, with_tools=with_tools))
        if self.documents is not None:
            given["documents"] = self._documents(variables)
        effort = {} if self.reasoning_effort is None else effort_arguments(variables, self.reasoning_effort)
        return _with_variables(chat, {**effort, **given})

    def _documents(self, variables: Variables) -> list[dict[str, Any]]:
        if "documents" not in variables:
            raise RequestError("the chat template takes no documents", param="documents")
        return list(self.documents or ())


def _with_variables(chat: ChatSection, variables: dict[str, Any]) -> ChatSection:
    return chat.model_copy(update={"template_kwargs": {**chat.template_kwargs, **variables}}) if variables else chat
