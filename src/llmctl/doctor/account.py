"""Checks of the Hub, the token, and the access to a model that has to be downloaded. Pure."""

from collections.abc import Iterator

from llmctl.doctor.findings import Check, Findings, HubState, fault, ok, skipped, warning
from llmctl.doctor.need import Need
from llmctl.units import format_bytes

SLOW_SECONDS = 2.0


def check_account(findings: Findings, need: Need) -> Iterator[Check]:
    """Check that the Hub answers, that the token works, and that the model may be read."""
    hub = findings.hub
    if hub is None or hub.failure:
        for name in ("Hub", "token", "model access"):
            yield skipped(name, "huggingface_hub does not work here" if hub else "not asked")
        return
    yield _hub(hub, need)
    yield _token(hub, need)
    yield _access(hub, need)


def _hub(hub: HubState, need: Need) -> Check:
    if hub.offline:
        return skipped("Hub", "the network is forbidden (--offline or HF_HUB_OFFLINE)")
    through = f" through the proxy {hub.proxy}" if hub.proxy else ""
    if hub.unreachable is not None:
        tried = hub.unreachable.kind == "unreachable"
        named = through if tried and hub.proxy and hub.proxy not in hub.unreachable.message else ""
        return fault("Hub", hub.unreachable.message + named, hub.unreachable.hint, needed=need.download)
    text = f"{hub.endpoint} answered in {hub.seconds or 0:.2f} s{through}"
    if (hub.seconds or 0) > SLOW_SECONDS:
        return warning("Hub", f"{text}: slow", "curl --head --verbose " + hub.endpoint)
    return ok("Hub", text)


def _token(hub: HubState, need: Need) -> Check:
    if hub.token_refused is not None:
        return fault("token", hub.token_refused.message, hub.token_refused.hint, needed=need.download)
    if hub.token_source is None:
        return skipped("token", "none; public models need none (llmctl login stores one)")
    if hub.role is None:
        return skipped("token", f"from {hub.token_source}; the Hub could not be asked about it")
    kinds = {"": "from a browser login", "fineGrained": "fine-grained"}
    text = f"from {hub.token_source}, {kinds.get(hub.role, hub.role)} (whose it is: llmctl whoami)"
    if hub.reads_gated is False:
        reason = f"{text}; it may not read public gated models"
        fix = (
            f"tick 'Read access to contents of all public gated repos you can access' at {hub.endpoint}/settings/tokens"
        )
        return warning("token", reason, fix)
    return ok("token", text)


def _access(hub: HubState, need: Need) -> Check:
    if hub.wanted is None:
        return skipped("model access", "no model has to be downloaded")
    if hub.access_refused is not None:
        return fault("model access", hub.access_refused.message, hub.access_refused.hint, needed=need.download)
    if hub.download_bytes is None:
        return skipped("model access", f"the Hub could not be asked about {hub.wanted}")
    return ok("model access", f"{hub.wanted} may be read: {format_bytes(hub.download_bytes)} to download")
