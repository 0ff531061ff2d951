"""Errors of the HTTP API, in OpenAI's shape and with its status codes.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "messages[0].role", "code": null}}

Shape and types: https://platform.openai.com/docs/guides/error-codes. The `openai` clients choose the class of their
exception by the status.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.errors import ConfigError, LlmctlError, MachineError, UserError
from llmctl.server.fields import REFUSED, Body, closest_field
from llmctl.synonyms import find_synonym

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException

_MAX_MESSAGE_LENGTH = 2000
_MAX_PROBLEMS = 5
_MAX_KEY_LENGTH = 100
_SERVER_SECTIONS = ("model", "load", "tokenizer", "quantization", "draft")
_UNKNOWN = "extra_forbidden"  # pydantic's type of error for a key without a field
_CODES = {_UNKNOWN: "unknown_parameter", REFUSED: REFUSED}  # OpenAI's


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        message: What is wrong and how to fix it, for the author of the request. Never a secret, never the prompt.
        status: The HTTP status.
        type: OpenAI's error type (default: the type for the status).
        param: The invalid part of the request: `messages[0].content`.
        code: A short name for programs: `model_not_found`.
        headers: Further response headers: Retry-After.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message if len(message) <= _MAX_MESSAGE_LENGTH else message[:_MAX_MESSAGE_LENGTH] + "…"
        self.status = status
        self.type = type or _type_of(status)
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON document of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def to_request_error(error: Exception) -> RequestError:
    """Return the error to send to the client.

    It contains no paths, tracebacks or messages of bugs; these are only for the operator.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UserError):
        return _from_user_error(error)
    if isinstance(error, MachineError):
        return RequestError(error.message, status=503, code="out_of_resources", headers={"Retry-After": "1"})
    if isinstance(error, LlmctlError):
        return RequestError(error.message, status=503)
    return RequestError("the server failed on this request; see its log", status=500, code="internal_error")


def _from_user_error(error: UserError) -> RequestError:
    if {"prompt_tokens", "context_length"} <= error.details.keys():  # its message contains the model's folder
        tokens, context = error.details["prompt_tokens"], error.details["context_length"]
        about = "about " if error.details.get("is_estimated") else ""
        message = f"the prompt has {about}{tokens} tokens, but the model's context length is {context}: shorten it"
        return RequestError(message, code="context_length_exceeded")
    message = error.message
    if isinstance(error, ConfigError):  # its message is about files
        message = "; ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
    return RequestError(message, param=error.details.get("param"))


def validation_error(errors: Sequence[Mapping[str, Any]], body: type[Body] | None = None) -> RequestError:
    """Return one error for all of pydantic's `errors()`. It does not contain values of the request.

    Args:
        body: The body of the route, for the closest field to an unknown key.
    """
    if errors and errors[0]["type"] == "json_invalid":
        return RequestError("the body is not valid JSON", code="invalid_json")
    problems = [(_param(error), _message(error, body)) for error in errors]
    lines = [f"{param}: {message}" if param else message for param, message in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    param = (problems[0][0] or None) if problems else None
    code = _CODES.get(str(errors[0]["type"])) if errors else None
    return RequestError("; ".join(lines) or "the request is not valid", param=param, code=code)


def _message(error: Mapping[str, Any], body: type[Body] | None) -> str:
    if error["type"] == "missing" and error["loc"][-1:] == ("model",):
        return f"{error['msg']}: an id from /v1/models"
    if error["type"] != _UNKNOWN:
        return str(error["msg"]).removeprefix("Value error, ")
    if close := closest_field(body, error["loc"][1:]):
        return f"unknown key; did you mean {close}?"
    synonym = find_synonym(str(error["loc"][-1]))
    is_of_server = synonym is not None and synonym.key.partition(".")[0] in _SERVER_SECTIONS
    return (
        f"unknown key; it is set when the server starts: {synonym.key}" if synonym and is_of_server else "unknown key"
    )


def _param(error: Mapping[str, Any]) -> str:
    """Return `messages[0].content` for ("body", "messages", 0, "content"), without the types of a union."""
    text = ""
    *places, last = error["loc"] or ("",)
    loc = [part for part in places if isinstance(part, int) or part.isidentifier()]
    if isinstance(last, int) or last.isidentifier() or error["type"] == _UNKNOWN:
        loc.append(last if isinstance(last, int) else last[:_MAX_KEY_LENGTH])
    for part in loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def add_error_handlers(app: "FastAPI") -> None:
    """Answer every error inside `app` in OpenAI's shape: unknown routes and methods, invalid bodies (400), llmctl's own
    errors, and bugs (500, with a traceback in the log)."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    def respond(error: RequestError) -> Response:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    async def invalid_body(request: Request, error: Any) -> Response:
        return respond(validation_error(error.errors(), request.scope["route"].endpoint.__annotations__.get("body")))

    async def http_exception(request: Request, error: Any) -> Response:
        paths = {getattr(route, "path", "") for route in request.app.routes}
        return respond(_from_http_exception(error, request.method, request.url.path, paths))

    async def other_error(request: Request, error: Exception) -> Response:
        return respond(to_request_error(error))

    app.add_exception_handler(RequestValidationError, invalid_body)
    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(RequestError, other_error)
    app.add_exception_handler(LlmctlError, other_error)
    app.add_exception_handler(Exception, other_error)  # the guard around the app logs it


def _from_http_exception(error: "HTTPException", method: str, path: str, paths: Iterable[str]) -> RequestError:
    status, detail, headers = error.status_code, str(error.detail), error.headers
    if status == 404 and detail == "Not Found":
        known = ", ".join(sorted(one for one in paths if one.startswith("/v1/") and "{" not in one))
        message = f"Invalid URL ({method} {path}); this server has {known}"
        return RequestError(message, status=404, code="unknown_url", headers=headers)
    if status == 405:
        return RequestError(
            f"Not allowed to {method} on {path}", status=405, code="method_not_supported", headers=headers
        )
    return RequestError(detail, status=status, headers=headers)
