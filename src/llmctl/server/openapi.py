"""The OpenAPI document: FastAPI's, with the model's name and the actual shape of errors."""

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
    """Return a function for `app.openapi`. It creates the document when it is first called.

    Args:
        app: The app with all its routes.
        model: The only valid `model` of a request.
    """

    def openapi() -> dict[str, Any]:
        from fastapi.openapi.utils import get_openapi

        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _fix_schemas(document.setdefault("components", {}).setdefault("schemas", {}), model)
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _fix_operation(operation, model, streams=method == "post" and path.startswith("/v1/"))
            app.openapi_schema = document
        return app.openapi_schema

    return openapi


def _fix_schemas(schemas: dict[str, Any], model: str) -> None:
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "enum": [model]}
    schemas["Error"] = _ERROR


def _fix_operation(operation: dict[str, Any], model: str, *, streams: bool) -> None:
    if operation["responses"].pop("422", None) and streams:
        operation["responses"]["200"]["content"]["text/event-stream"] = {}
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "name":
            parameter["schema"] = {"type": "string", "enum": [model]}
    operation["responses"]["default"] = _ERROR_RESPONSE
