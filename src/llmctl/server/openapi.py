"""The OpenAPI document: FastAPI's, with the name of the model and errors in the shape that they really have."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERROR_RESPONSE = {
    "description": "An error in OpenAI's shape.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def openapi_function(app: "FastAPI", model: str) -> Callable[[], dict[str, Any]]:
    """Return a function for `app.openapi`, which makes the document on the first call.

    Args:
        app: The app with all its routes.
        model: The only value of a request's `model`.
    """

    def openapi() -> dict[str, Any]:
        from fastapi.openapi.utils import get_openapi

        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _mend_schemas(document.setdefault("components", {}).setdefault("schemas", {}), model)
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _mend_operation(operation, model, streams=method == "post" and path.startswith("/v1/"))
            app.openapi_schema = document
        return app.openapi_schema

    return openapi


def _mend_schemas(schemas: dict[str, Any], model: str) -> None:
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "enum": [model]}
    schemas["Error"] = _ERROR


def _mend_operation(operation: dict[str, Any], model: str, *, streams: bool) -> None:
    if operation["responses"].pop("422", None) and streams:
        operation["responses"]["200"]["content"]["text/event-stream"] = {}
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "name":
            parameter["schema"] = {"type": "string", "enum": [model]}
    operation["responses"]["default"] = _ERROR_RESPONSE
