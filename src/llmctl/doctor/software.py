"""Checks of packages: each can be imported, and its version is in the supported range. Pure."""

from collections.abc import Iterator

from llmctl.doctor.findings import BASE_ADDRESS_BYTES, Check, Findings, Trial, fault, ok, skipped, warning
from llmctl.quant.registry import backend_packages
from llmctl.versions import is_inside, lower_first, release, without_local

# The newest tested versions. Newer versions may work; the range in llmctl's metadata determines which are refused.
TESTED_UP_TO = {
    "torch": "2.13",
    "transformers": "5.24",
    "huggingface_hub": "2.4",
    "accelerate": "1.15",
    **{package.name: package.tested_up_to for _, package in backend_packages()},
}
ALWAYS = "llmctl loads every model with it"
_NAMES = {"flash_attn": "flash-attn"}
_BACKEND_PACKAGES = frozenset(package.name for _, package in backend_packages())
_IMPORT_TORCH = frozenset({"transformers", "accelerate", "flash_attn"}) | _BACKEND_PACKAGES
# Packages with a separate line; the other requirements share one line.
_OWN_LINE = _IMPORT_TORCH | {"torch", "tokenizers", "safetensors"}


def check_software(findings: Findings) -> Iterator[Check]:
    """Check Python and the packages that do not depend on GPUs."""
    yield _python(findings)
    for name in ("transformers", "tokenizers", "safetensors", "accelerate"):
        yield package(findings, name, needed=ALWAYS)
    yield _huggingface_hub(findings)
    yield _kernels(findings)
    yield _others(findings)


def package(findings: Findings, name: str, *, needed: str | None, about: str = "") -> Check:
    """Check that a package can be imported and is in its range. `about` follows the version."""
    return not_importable(findings, name, needed=needed) or in_range(findings, name, needed=needed, about=about)


def not_importable(findings: Findings, name: str, *, needed: str | None) -> Check | None:
    """Return the fault that prevents the import of a package, or None if it was imported."""
    trial, label = findings.trials.get(name), _NAMES.get(name, name)
    if trial is None:
        return fault(label, "not installed", f"pip install {_wanted(findings, name)}", needed=needed)
    if trial.outcome == "imported":
        return None
    torch = findings.trials.get("torch")
    if name in _IMPORT_TORCH and torch is not None and torch.outcome != "imported":
        return skipped(label, "it imports torch, which does not work here")
    return fault(label, import_failure(trial), _fix_for(findings, name, trial), needed=needed)


def import_failure(trial: Trial) -> str:
    """Return why an import did not succeed, in words."""
    if trial.outcome == "crashed":
        return f"importing it kills Python ({trial.error})"
    if trial.outcome == "hung":
        return f"importing it does not finish ({trial.error}; with a slow disk, raise --time-limit)"
    if trial.foreign_symbols:
        return f"it was built against a different torch than the installed one ({trial.error})"
    return f"importing it fails ({trial.error})"


def _fix_for(findings: Findings, name: str, trial: Trial) -> str:
    """Return the command that fixes an import."""
    label, version = _NAMES.get(name, name), findings.version(name)
    limit = findings.computer.address_limit_bytes
    if limit is not None and limit < BASE_ADDRESS_BYTES and trial.outcome in ("failed", "crashed"):
        return "ulimit -v unlimited"
    if name == "flash_attn" and trial.foreign_symbols:
        # --no-deps keeps torch; --no-cache-dir, since pip caches the wheel that it built for the other torch
        return "pip install --no-build-isolation --force-reinstall --no-deps --no-cache-dir flash-attn"
    missing = (trial.missing_module or "").partition(".")[0]
    if missing and missing != name:
        return f"pip install {missing}"
    pinned = f'"{label}=={without_local(version)}"' if version else label
    isolation = "--no-build-isolation " if name == "flash_attn" else ""
    return f"pip install {isolation}--force-reinstall --no-deps {pinned}"


def in_range(findings: Findings, name: str, *, needed: str | None, about: str = "") -> Check:
    """Check an installed version against its range and the tested versions."""
    label, version = _NAMES.get(name, name), findings.version(name)
    wanted = lower_first(findings.requirements.ranges.get(name, ""))
    if version is None:
        return ok(label, f"imported; its version is unknown{about}")
    if wanted and not is_inside(version, wanted):
        fix = f"pip install {_wanted(findings, name)}"
        return fault(label, f"{version} is outside the range that llmctl supports, {wanted}", fix, needed=needed)
    tested = TESTED_UP_TO.get(name)
    if tested is not None and release(version)[:2] > release(tested):
        fix = f'pip install "{label}=={tested}.*"'
        return warning(label, f"{version} is newer than the version that llmctl is tested with, {tested}{about}", fix)
    within = f" (made for {wanted})" if wanted else ""
    return ok(label, f"{version}{within}{about}")


def _wanted(findings: Findings, name: str) -> str:
    """Return a package with its range, quoted for a shell."""
    wanted = lower_first(findings.requirements.ranges.get(name, ""))
    return f'"{_NAMES.get(name, name)}{wanted}"' if wanted else _NAMES.get(name, name)


def _python(findings: Findings) -> Check:
    version, wanted = findings.computer.python, findings.requirements
    if wanted.python and not is_inside(version, wanted.python):
        reason = f"{version} is outside the range that llmctl supports, {wanted.python}"
        return fault("python", reason, "python3.11 -m venv .venv", needed=ALWAYS)
    tested = wanted.tested_pythons
    if tested and ".".join(version.split(".")[:2]) not in tested:
        return warning("python", f"{version} is not a version that llmctl is tested with ({', '.join(tested)})")
    return ok("python", version + (f" (tested with {', '.join(tested)})" if tested else ""))


def _huggingface_hub(findings: Findings) -> Check:
    hub = findings.hub
    if hub is not None and hub.failure:
        version = findings.version("huggingface_hub")
        pinned = f'"huggingface_hub=={version}"' if version else "huggingface_hub"
        return fault(
            "huggingface_hub",
            f"it cannot be used ({hub.failure})",
            f"pip install --force-reinstall --no-deps {pinned}",
            needed=ALWAYS,
        )
    return in_range(findings, "huggingface_hub", needed=ALWAYS)


def _kernels(findings: Findings) -> Check:
    """Check the package `kernels`. llmctl never loads a kernel from the Hub; transformers may."""
    version = findings.version("kernels")
    if version is None:
        return skipped("kernels", "not installed, and not needed")
    hidden = "llmctl uses no kernels from the Hub and hides it from bitsandbytes, which would download code with it"
    transformers = findings.trials.get("transformers")
    low, high = (transformers.facts.get("kernels") if transformers else None) or (None, None)
    if low and high and not is_inside(version, f">={low},<{high}"):
        reason = f"{version} is outside the range of this transformers, from {low} to below {high}; {hidden}"
        return warning("kernels", reason, f'pip install "kernels>={low},<{high}"')
    return ok("kernels", f"{version}; {hidden}")


def _others(findings: Findings) -> Check:
    """Check the other requirements of llmctl by their metadata only."""
    wanted = findings.requirements
    if not wanted.ranges:
        return skipped("other packages", "llmctl is not installed as a package, so its requirements are unknown")
    wrong = []
    for name, bounds in wanted.ranges.items():
        if name in _OWN_LINE or name == "huggingface_hub":
            continue
        version = wanted.installed.get(name)
        if version is None:
            wrong.append((f"{name} is not installed", _wanted(findings, name)))
        elif not is_inside(version, bounds):
            wrong.append((f"{name} {version} is outside {lower_first(bounds)}", _wanted(findings, name)))
    psutil = findings.trials.get("psutil")
    if psutil is not None and psutil.outcome != "imported":
        wrong.append((f"psutil cannot be imported ({psutil.error})", "--force-reinstall --no-deps psutil"))
    if wrong:
        fix = "pip install " + " ".join(name for _, name in wrong)
        return fault("other packages", "; ".join(reason for reason, _ in wrong), fix, needed="llmctl is built on them")
    return ok("other packages", "all requirements of llmctl are installed and in range")
