"""Login through a browser: the device flow (RFC 8628) that huggingface_hub offers."""

import time
from collections.abc import Callable

from llmctl.errors import TokenError, UnreachableError
from llmctl.hub.http import refuse_if_offline, session
from llmctl.hub.login.account import Account, account_of, store


def is_offered() -> bool:
    """Return True if the installed huggingface_hub has the flow (2.2 and later)."""
    try:
        from huggingface_hub.utils import _oauth_device
    except ImportError:
        return False
    return hasattr(_oauth_device, "request_device_code")


def login(show: Callable[[str, str], None], *, name: str | None = None, add_to_git_credential: bool = False) -> Account:
    """Request a code, pass the address and the code to `show`, wait for confirmation, and store the token.

    Raises:
        TokenError: the login was refused or took too long.
        UnreachableError: the Hub could not be asked.
    """
    from huggingface_hub.errors import DeviceCodeError
    from huggingface_hub.utils._oauth_device import poll_device_token, request_device_code

    refuse_if_offline("login")
    session()  # explains variables that cannot be used
    try:
        request = request_device_code()
    except DeviceCodeError as error:
        raise UnreachableError(
            "the Hub does not offer login through a browser now", hint="paste a token instead"
        ) from error
    show(request["verification_uri_complete"], request["user_code"])
    try:
        answer = poll_device_token(request)
    except DeviceCodeError as error:
        raise TokenError("the login was refused in the browser, or took too long", hint="llmctl login") from error
    token = answer["access_token"]
    extra = {}
    if answer.get("refresh_token"):
        extra["refresh_token"] = str(answer["refresh_token"])
    if answer.get("expires_in"):
        extra["expires_at"] = str(int(time.time()) + int(answer["expires_in"]))
    return store(token, account_of(token), name=name, add_to_git_credential=add_to_git_credential, extra=extra)
