"""The app's own description: FastAPI's, with the model that is served, and the errors as they really are."""

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


def description(app: "FastAPI", name: str) -> Callable[[], dict[str, Any]]:
    """What `app.openapi` is to be: made once, when it is asked for.

    Args:
        app: The app, with all its routes.
        name: What clients call the model.
    """

    def describe() -> dict[str, Any]:
        from fastapi.openapi.utils import get_openapi

        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for schema in schemas.values():
                if "model" in schema.get("properties", {}):
                    schema["properties"]["model"] = {"type": "string", "enum": [name]}
            schemas["Error"] = _ERROR
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    if operation["responses"].pop("422", None) and path.startswith("/v1/") and "post" in operations:
                        operation["responses"]["200"]["content"]["text/event-stream"] = {}
                    for parameter in operation.get("parameters", ()):
                        if parameter["name"] == "name":
                            parameter["schema"] = {"type": "string", "enum": [name]}
                    operation["responses"]["default"] = {
                        "description": "An error in OpenAI's shape.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                    }
            app.openapi_schema = document
        return app.openapi_schema

    return describe
