"""Errors of the HTTP interface, in OpenAI's shape and with its status codes.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "messages[0].role", "code": null}}

Shape and types: https://platform.openai.com/docs/guides/error-codes. The `openai` clients choose the class of their
exception by the status.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmctl.errors import LlmctlError, MachineError, UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

_LONGEST_MESSAGE = 2000
_MOST_PROBLEMS = 5


class RequestError(Exception):
    """A request that gets an error for an answer.

    Args:
        message: What is wrong and what would be right, for whoever wrote the request. Never a secret, never the prompt.
        status: The HTTP status.
        type: OpenAI's name for the kind of error; without it the one that goes with the status.
        param: The part of the request that it is about: `messages[0].content`.
        code: A short name that a program can tell it by: `model_not_found`.
        headers: Further headers of the answer: Retry-After.
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
        self.message = message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + "…"
        self.status = status
        self.type = type or _type_of(status)
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The document that is answered."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_of(error: Exception) -> RequestError:
    """What the client is told about an error that came up while its request was answered.

    What only the operator may know (paths, tracebacks, the message of a bug) stays out of it.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UserError):
        return _of_user(error)
    if isinstance(error, MachineError):
        return RequestError(error.message, status=503, code="out_of_resources", headers={"Retry-After": "1"})
    if isinstance(error, LlmctlError):
        return RequestError(error.message, status=503)
    return RequestError("the server failed on this request; its log says why", status=500, code="internal_error")


def _of_user(error: UserError) -> RequestError:
    """What the request has to change, and where."""
    if {"prompt_tokens", "context_length"} <= error.details.keys():  # its message names the model's folder
        tokens, context = error.details["prompt_tokens"], error.details["context_length"]
        message = f"the prompt has {tokens} tokens, the context of this model holds {context}"
        return RequestError(message, code="context_length_exceeded")
    return RequestError(error.message, param=error.details.get("param"))


def validation_error(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """One problem for all that pydantic found: `errors` as its `errors()` gives them. The values stay out of it."""
    if errors and errors[0]["type"] == "json_invalid":
        return RequestError("the body is not valid JSON", code="invalid_json")
    found = [(_param(error["loc"]), str(error["msg"]).removeprefix("Value error, ")) for error in errors]
    lines = [f"{param}: {message}" if param else message for param, message in found[:_MOST_PROBLEMS]]
    if len(found) > _MOST_PROBLEMS:
        lines.append(f"and {len(found) - _MOST_PROBLEMS} more")
    return RequestError("; ".join(lines) or "the request is not valid", param=(found[0][0] or None) if found else None)


def _param(loc: Sequence[int | str]) -> str:
    """`messages[0].content` for ("body", "messages", 0, "content"), without the types that were tried in a union."""
    text = ""
    loc = [part for part in loc if isinstance(part, int) or part.isidentifier()]
    for part in loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def answer_errors_in_shape(app: "FastAPI") -> None:
    """Whatever goes wrong inside `app` is answered in OpenAI's shape: unknown routes and methods, bodies that do not
    validate (400), errors of llmctl, and bugs (500, with their traceback in the log)."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    def answer(problem: RequestError) -> Response:
        return JSONResponse(problem.body(), status_code=problem.status, headers=problem.headers)

    async def invalid(request: Request, error: Any) -> Response:
        return answer(validation_error(error.errors()))

    async def of_http(request: Request, error: Any) -> Response:
        return answer(_of_status(error.status_code, str(error.detail), request.method, request.url.path, error.headers))

    async def known(request: Request, error: Exception) -> Response:
        return answer(error_of(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestError, known)
    app.add_exception_handler(LlmctlError, known)
    app.add_exception_handler(Exception, known)  # the guard around the app logs it


def _of_status(status: int, detail: str, method: str, path: str, headers: Mapping[str, str] | None) -> RequestError:
    if status == 404 and detail == "Not Found":
        return RequestError(f"Invalid URL ({method} {path})", status=404, code="unknown_url", headers=headers)
    if status == 405:
        return RequestError(
            f"Not allowed to {method} on {path}", status=405, code="method_not_supported", headers=headers
        )
    return RequestError(detail, status=status, headers=headers)
