"""The doctor through the real command line, on this machine as it is and with faults."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TinyModels = Callable[[str], Path]
SOFTWARE = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "huggingface_hub")


def test_this_machine_is_clean_for_a_model_on_the_cpu(doctor: Any, tiny_models: TinyModels) -> None:
    found = doctor("--model", str(tiny_models("llama")), "--set", "load.device_map=cpu")
    assert found["exit_code"] == 0, found["all_text"]
    assert found["healthy"]
    assert [name for name in SOFTWARE if found["line"][name]["status"] != "ok"] == []
    assert found["line"]["plan"]["status"] == "ok"
    assert found["line"]["plan"]["reason"].startswith("cpu: ")


def test_every_check_is_a_line_with_a_status_and_a_reason_and_a_summary_follows(doctor: Any, quick: str) -> None:
    done = doctor.raw("--verbose", PYTHONPATH=quick)
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "warning", "broken", "skipped", "fix:"}
    assert lines[-1].startswith("nothing is broken")
    for name in ("python", "threads", "open files", "cache folder", "memory", "CPU"):
        assert [line for line in lines if line[11:].startswith(name)], name


def test_cuda_with_flash_attention_is_broken_without_a_gpu_and_each_line_has_a_fix(doctor: Any, quick: str) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    asked = ("--set", "load.device_map=cuda", "--set", "load.attn_implementation=flash_attention_2")
    found = doctor(*asked, PYTHONPATH=quick)
    assert found["exit_code"] == 1
    line = found["line"]
    assert line["GPU"]["status"] == line["attention"]["status"] == line["flash-attn"]["status"] == "broken"
    assert "load.device_map names cuda" in line["GPU"]["reason"]
    assert line["GPU"]["fix"] == "use --device-map auto or cpu"
    assert line["attention"]["fix"] == "--attn sdpa"
    assert "pip install --no-build-isolation flash-attn" in line["flash-attn"]["reason"]
    assert line["bitsandbytes"]["status"] == "ok"


def test_problems_of_the_configuration_are_lines_and_the_rest_is_still_checked(
    doctor: Any, tmp_path: Path, quick: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("load:\n  dtpye: bf16\ngeneration:\n  top_p: 3\n")
    found = doctor("--config", str(file), PYTHONPATH=quick)
    assert found["exit_code"] == 1
    problems = [c["reason"] for c in found["checks"] if c["name"] == "configuration" and c["status"] == "broken"]
    assert problems == [
        f"{file}:2: load.dtpye: unknown key; did you mean load.dtype?",
        f"{file}:4: generation.top_p: must be at most 1, it is 3",
    ]
    assert found["line"]["torch"]["status"] == "ok"


def test_an_error_of_the_plan_is_reported_with_its_hint(doctor: Any, tiny_models: TinyModels, quick: str) -> None:
    asked = ("--set", "load.device_map=cpu", "--set", "load.max_memory={cpu: 10KB}")
    found = doctor("--model", str(tiny_models("llama")), *asked, PYTHONPATH=quick)
    assert found["exit_code"] == 1
    assert found["line"]["plan"]["status"] == "broken"
    assert "allowed by max_memory" in found["line"]["plan"]["reason"]
    assert found["line"]["plan"]["fix"]


def test_a_folder_without_a_model_is_one_line(doctor: Any, tmp_path: Path, quick: str) -> None:
    found = doctor("--model", str(tmp_path), PYTHONPATH=quick)
    assert found["exit_code"] == 1
    assert "config.json" in found["line"]["model"]["reason"]


# -- packages that are broken

SEGFAULT = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


@pytest.mark.parametrize(("bits", "status", "code"), [("4", "broken", 1), ("none", "warning", 0)])
def test_a_package_that_segfaults_is_one_line(
    bits: str, status: str, code: int, doctor: Any, plant: Any, quick: str
) -> None:
    planted = plant("bitsandbytes", SEGFAULT)
    found = doctor("--set", f"quantization.bits={bits}", PYTHONPATH=f"{planted}{os.pathsep}{quick}")
    line = found["line"]["bitsandbytes"]
    assert (line["status"], found["exit_code"]) == (status, code), found["all_text"]
    assert "kills Python (SIGSEGV)" in line["reason"]
    assert line["fix"].startswith("pip install --force-reinstall")
    assert found["line"]["torch"]["status"] == "ok"
    assert found["line"]["memory"]["status"] == "ok"


def test_a_hanging_package_is_stopped_with_its_child_processes(
    doctor: Any, plant: Any, quick: str, tmp_path: Path
) -> None:
    mark = tmp_path / "grandchild"
    code = (
        "import subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '600'])\nopen({str(mark)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    planted = plant("accelerate", code)
    found = doctor("--time-limit", "8", PYTHONPATH=f"{planted}{os.pathsep}{quick}")
    assert found["exit_code"] == 1
    assert "no result after 8 s" in found["line"]["accelerate"]["reason"]
    assert found["line"]["torch"]["status"] == "ok", found["all_text"]
    assert has_ended(int(mark.read_text()))


def test_an_interrupt_ends_everything_at_once(doctor: Any, plant: Any, quick: str, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    plant("accelerate", "import time\ntime.sleep(600)\n")
    code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    planted = plant("safetensors", code)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmctl", "doctor", "--offline"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=doctor.folder,
        env={**os.environ, "PYTHONPATH": f"{planted}{os.pathsep}{quick}"},
    )
    until = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert has_ended(int(mark.read_text()))


def has_ended(pid: int) -> bool:
    """Return True if a process has ended, even if it has not been reaped yet."""
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_package_that_raises_or_exits_is_one_line(doctor: Any, plant: Any, quick: str) -> None:
    plant("bitsandbytes", "raise OSError('libcudart.so.99: cannot open')\n")
    plant("tokenizers", "raise SystemExit(0)\n")
    planted = plant("accelerate", "import a_module_that_is_not_there\n")
    found = doctor("--set", "quantization.bits=8", PYTHONPATH=f"{planted}{os.pathsep}{quick}")
    line = found["line"]
    assert found["exit_code"] == 1
    assert "OSError: libcudart.so.99: cannot open" in line["bitsandbytes"]["reason"]
    assert line["accelerate"]["fix"] == "pip install a_module_that_is_not_there"
    assert line["tokenizers"]["status"] == "broken"
    assert "quantization.bits is 8" in line["bitsandbytes"]["reason"]


def test_packages_that_import_torch_are_not_blamed_for_a_broken_torch(doctor: Any, plant: Any) -> None:
    found = doctor(PYTHONPATH=str(plant("torch", SEGFAULT)))
    assert found["exit_code"] == 1
    assert found["line"]["torch"]["status"] == "broken"
    assert found["line"]["accelerate"]["status"] == "skipped"
    assert [c["name"] for c in found["checks"] if c["status"] == "broken"] == ["torch"]


def test_a_broken_huggingface_hub_and_a_broken_psutil_leave_the_other_checks(
    doctor: Any, plant: Any, quick: str
) -> None:
    plant("psutil", "raise ImportError('planted')\n")
    found = doctor(PYTHONPATH=f"{plant('huggingface_hub', SEGFAULT)}{os.pathsep}{quick}")
    line = found["line"]
    assert found["exit_code"] == 1
    assert "SIGSEGV" in line["huggingface_hub"]["reason"]
    assert "psutil cannot be imported" in line["other packages"]["reason"]
    assert line["Hub"]["status"] == line["memory"]["status"] == "skipped"
    assert line["safetensors"]["status"] == line["cache folder"]["status"] == "ok"


UNDEFINED = "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')\n"


def test_a_flash_attn_built_for_another_torch_is_named_with_the_command(doctor: Any, plant: Any, quick: str) -> None:
    planted = f"{plant('flash_attn', UNDEFINED, version='2.8.3')}{os.pathsep}{quick}"
    found = doctor("--set", "load.attn_implementation=flash_attention_2", PYTHONPATH=planted)
    line = found["line"]["flash-attn"]
    assert (line["status"], found["exit_code"]) == ("broken", 1)
    assert "built against a different torch" in line["reason"]
    assert line["fix"].startswith("pip install --no-build-isolation --force-reinstall")
    assert line["fix"].endswith("flash-attn")
    assert doctor(PYTHONPATH=planted)["line"]["flash-attn"]["status"] == "warning"


def test_modules_in_the_current_folder_are_not_imported(doctor: Any, quick: str) -> None:
    (doctor.folder / "accelerate.py").write_text("raise RuntimeError('a script of the user')\n")
    assert doctor(PYTHONPATH=quick)["line"]["accelerate"]["status"] == "ok"


# -- disk and limits


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named(doctor: Any, small_disk: Path, quick: str) -> None:
    (small_disk / "filler").write_bytes(b"0" * 900_000)
    line = doctor(HF_HOME=str(small_disk / "hf"), PYTHONPATH=quick)["line"]["cache folder"]
    assert line["status"] == "warning"
    assert f"the disk of {small_disk / 'hf' / 'hub'} is full" in line["reason"]
    assert line["fix"] == "llmctl models prune"


def test_a_cache_that_cannot_be_written_is_named(doctor: Any, small_disk: Path, quick: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    line = doctor(HF_HUB_CACHE=str(small_disk), PYTHONPATH=quick)["line"]["cache folder"]
    assert line["status"] == "warning"
    assert "nothing can be written" in line["reason"]
    assert "HF_HOME" in line["fix"]


def test_a_cache_below_a_file_is_named(doctor: Any, tmp_path: Path, quick: str) -> None:
    (tmp_path / "file").write_text("")
    line = doctor(HF_HUB_CACHE=str(tmp_path / "file" / "hub"), PYTHONPATH=quick)["line"]["cache folder"]
    assert f"{tmp_path / 'file'} is a file" in line["reason"]


def test_the_checks_leave_nothing_in_the_cache(doctor: Any, tmp_path: Path, quick: str) -> None:
    doctor(PYTHONPATH=quick)
    assert not (tmp_path / "hf-home").exists()


def test_a_limit_of_address_space_is_named(doctor: Any, quick: str) -> None:
    found = doctor(prefix=("prlimit", "--as=2000000000"), PYTHONPATH=quick)
    line = found["line"]["address space"]
    assert line["status"] == "warning"
    assert "ulimit -v allows 2 GB" in line["reason"]
    assert line["fix"] == "ulimit -v unlimited"


def test_too_many_threads_and_few_files_are_named(doctor: Any, quick: str) -> None:
    found = doctor(
        prefix=("prlimit", "--nofile=256"), OMP_NUM_THREADS="640", TOKENIZERS_PARALLELISM="false", PYTHONPATH=quick
    )
    line = found["line"]
    assert found["exit_code"] == 0
    assert "640 threads" in line["threads"]["reason"]
    assert line["threads"]["fix"].startswith("export OMP_NUM_THREADS=")
    assert "256" in line["open files"]["reason"]
    assert line["tokenizers parallelism"]["fix"] == "unset TOKENIZERS_PARALLELISM"


# -- the Hub

Hub = Any


def test_a_working_hub_token_and_readable_model_are_ok(doctor: Any, hub: Hub, quick: str) -> None:
    found = doctor(
        "--model", "acme/tiny", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_TOKEN="hf_good", PYTHONPATH=quick
    )
    line = found["line"]
    assert found["exit_code"] == 0, found["all_text"]
    assert line["Hub"]["reason"].startswith(f"{hub.url} answered in ")
    assert line["token"]["reason"].startswith("from HF_TOKEN, read")
    assert line["model access"]["reason"].startswith("acme/tiny may be read: ")
    assert "hf_good" not in found["all_text"]
    assert not hub.asked(r"/resolve/"), "nothing is downloaded"


def test_a_wrong_token_is_named_and_not_shown(doctor: Any, hub: Hub, quick: str) -> None:
    asked = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_wrong_and_secret"}
    found = doctor("--model", "acme/tiny", **asked, PYTHONPATH=quick)
    assert found["exit_code"] == 1
    assert found["line"]["token"]["status"] == "broken"
    assert "the Hub does not know the token from HF_TOKEN" in found["line"]["token"]["reason"]
    assert "llmctl login" in found["line"]["token"]["fix"]
    assert "hf_wrong_and_secret" not in found["all_text"]


def test_an_unreadable_token_file_is_reported_for_the_token(doctor: Any, tmp_path: Path, quick: str) -> None:
    line = doctor("--offline", HF_TOKEN_PATH=str(tmp_path), PYTHONPATH=quick)["line"]
    assert line["huggingface_hub"]["status"] == "ok"
    assert line["token"]["status"] == "warning"
    assert str(tmp_path) in line["token"]["reason"]


def test_a_model_that_the_token_may_not_read_is_named(doctor: Any, hub: Hub, quick: str) -> None:
    found = doctor(
        "--model", "acme/gated", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, HF_TOKEN="hf_good", PYTHONPATH=quick
    )
    assert found["exit_code"] == 1
    assert found["line"]["token"]["status"] == "ok"
    assert "acme/gated is gated" in found["line"]["model access"]["reason"]
    assert "/acme/gated" in found["line"]["model access"]["fix"]


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_without_its_password(scheme: str, doctor: Any, quick: str) -> None:
    proxy = f"http://anna:secret@127.0.0.1:{closed_port()}"
    found = doctor(
        "--model",
        "acme/tiny",
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT=f"{scheme}://hub.invalid",
        HTTP_PROXY=proxy,
        HTTPS_PROXY=proxy,
        http_proxy=proxy,
        https_proxy=proxy,
        PYTHONPATH=quick,
    )
    assert found["exit_code"] == 1
    line = found["line"]["Hub"]
    assert line["status"] == "broken"
    assert proxy.replace("anna:secret@", "") in line["reason"]
    assert "proxy" in line["fix"]
    assert "secret" not in found["all_text"]
    assert "anna" not in found["all_text"]


def test_a_silent_hub_does_not_delay_the_doctor(doctor: Any, hub: Hub, quick: str) -> None:
    hub.fault(action="hang", seconds=60, times=-1)
    found = doctor("--model", "acme/tiny", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, PYTHONPATH=quick)
    assert "did not answer within 4 s" in found["line"]["Hub"]["reason"]


def test_offline_the_network_is_not_touched_and_a_missing_model_is_named(doctor: Any, hub: Hub, quick: str) -> None:
    found = doctor("--model", "acme/tiny", "--offline", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, PYTHONPATH=quick)
    assert found["exit_code"] == 1
    assert found["line"]["Hub"]["status"] == "skipped"
    assert found["line"]["model"]["fix"] == "with a network: llmctl download acme/tiny"
    assert hub.log == []


# -- the report


def test_the_report_has_useful_facts_and_no_secret(
    doctor: Any, plant: Any, tmp_path: Path, hub: Hub, quick: str
) -> None:
    home = tmp_path / "home-of-anna"
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "token").write_text("hf_stored_and_secret")
    (home / "llmctl.yaml").write_text("chat:\n  system: my private instructions\nseed: 7\n")
    planted = plant(
        "bitsandbytes", "import sys; sys.stderr.write('from hf_stored_and_secret\\n'); raise OSError('x')\n"
    )
    file = tmp_path / "report.md"
    done = doctor.raw(
        "--report",
        "--output",
        str(file),
        "--config",
        str(home / "llmctl.yaml"),
        HOME=str(home),
        HF_HOME=str(home / "cache"),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT=hub.url.replace("//", "//anna:password@"),
        HTTPS_PROXY="http://anna:password@proxy.invalid:3128",
        PYTHONPATH=f"{planted}{os.pathsep}{quick}",
    )
    text = file.read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "bitsandbytes: failed, OSError: x",
        "transformers 5",
        "seed: 7",
        "chat.system: (set)",
        "ok       python",
    ):
        assert part in text, part
    assert "HTTPS_PROXY=http://proxy.invalid:3128" in text
    assert "~/cache" in text
    for secret in ("hf_stored", "password", "private instructions", "home-of-anna"):
        assert secret not in text, secret
    assert "password" not in done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".report")] == []


def test_a_report_has_a_unique_name_and_is_written_only_on_request(doctor: Any, tmp_path: Path, quick: str) -> None:
    assert doctor.raw("--report", "--json", PYTHONPATH=quick).returncode == 0
    assert (doctor.folder / "llmctl-report.md").read_text().startswith("# llmctl doctor, ")
    refused = doctor.raw("report.md", PYTHONPATH=quick)
    assert refused.returncode == 2
    assert "--report" in refused.stderr
    (tmp_path / "file").write_text("")
    assert doctor.raw("--report", "--output", str(tmp_path / "file" / "x.md"), PYTHONPATH=quick).returncode == 3


def test_quiet_shows_only_problems(doctor: Any, quick: str) -> None:
    done = doctor.raw("--quiet", TOKENIZERS_PARALLELISM="false", PYTHONPATH=quick)
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"warning", "fix:"} <= set(words)
    assert not {"ok", "skipped"} & set(words)


def test_the_command_itself_imports_neither_torch_nor_transformers(tmp_path: Path, quick: str) -> None:
    code = (
        "import json, sys\nfrom llmctl.cli.main import main\ncode = main(['doctor', '--json', '--offline'])\n"
        "heavy = [m for m in ('torch', 'transformers', 'accelerate', 'bitsandbytes') if m in sys.modules]\n"
        "print(json.dumps(heavy), file=sys.stderr)\n"
    )
    env = {**os.environ, "PYTHONPATH": quick}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, check=True
    )
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_faulty_variables_are_lines_and_the_packages_are_tried_without_them(doctor: Any, quick: str) -> None:
    faulty = {"HF_HUB_ETAG_TIMEOUT": "abc", "HF_ENDPOINT": "http://[::1", "REQUESTS_CA_BUNDLE": "/absent.pem"}
    found = doctor("--offline", **faulty, SSL_CERT_FILE="", SSL_CERT_DIR="", PYTHONPATH=quick)
    assert found["exit_code"] == 1
    text = " ".join(check["reason"] for check in found["checks"] if check["name"] == "environment")
    assert all(name in text for name in faulty)
    assert found["line"]["huggingface_hub"]["status"] == "ok"


@pytest.mark.parametrize("content", ["\ufeffhf_good".encode(), "hf_good".encode("utf-16")], ids=["BOM", "UTF-16"])
def test_a_token_file_of_another_program_is_not_called_a_wrong_token(
    content: bytes, doctor: Any, hub: Hub, tmp_path: Path, quick: str
) -> None:
    (tmp_path / "token").write_bytes(content)
    asked = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(tmp_path / "token")}
    line = doctor("--model", "acme/tiny", **asked, PYTHONPATH=quick)["line"]["token"]
    assert line["status"] == "broken"
    assert "byte order mark" in line["reason"]
    assert line["fix"] == "store the token again: llmctl login"
