"""Images in requests: answers equal Python's, and pictures and URLs of strangers are read within limits."""

import asyncio
import base64
import concurrent.futures
import io
import json
import os
import random
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

import llmctl
from llmctl.generation.image_processor import LazyImageProcessor
from llmctl.generation.pictures import Picture, PictureLimits, fetch_picture
from llmctl.generation.pictures.fetch import Network
from llmctl.server.http_errors import RequestError
from llmctl.server.image_reader import ImageLimits, ImageReader, placed_images
from llmctl.server.schemas import Message
from support.served import served
from support.vision.build import build
from support.vision.pictures import picture

SETTINGS = (
    "--dtype",
    "fp32",
    "--set",
    "generation.temperature=0",
    "--set",
    "generation.max_new_tokens=12",
    "--model-name",
    "tiny",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3_vl", tmp_path_factory.mktemp("vision") / "qwen3_vl")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(str(folder), *SETTINGS) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def model(folder: Path) -> llmctl.Model:
    return llmctl.load(folder, load={"dtype": "float32"}, generation={"max_new_tokens": 12, "temperature": 0})


def encoded(image: Any, format_: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format_)
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(image: Any, **fields: Any) -> dict[str, Any]:
    url = image if isinstance(image, str) else data_url(encoded(image))
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


TWO = user(image_part(picture(0)), text_part("and"), image_part(picture(1)), text_part("say it"))


@pytest.fixture(scope="module")
def expected(model: llmctl.Model) -> str:
    """Return Python's answer to TWO."""
    images = [{"type": "image", "image": picture(number)} for number in (0, 1)]
    return model.generate(user(images[0], text_part("and"), images[1], text_part("say it"))).text


# -- answers


def test_the_openai_client_gets_pythons_answer_about_two_pictures(client: openai.OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(model="tiny", messages=TWO)
    assert answer.choices[0].message.content == expected
    chunks = list(client.chat.completions.create(model="tiny", messages=TWO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_responses_give_the_same_answer(client: openai.OpenAI, expected: str) -> None:
    content = [
        {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
        if part["type"] == "image_url"
        else {"type": "input_text", "text": part["text"]}
        for part in TWO[0]["content"]
    ]
    items: Any = [{"role": "user", "content": content}]
    assert client.responses.create(model="tiny", input=items).output_text == expected
    events = list(client.responses.create(model="tiny", input=items, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected


def test_usage_and_tokenize_count_image_tokens(client: openai.OpenAI, address: str, model: llmctl.Model) -> None:
    messages = user(image_part(picture(0)), text_part("say it"))
    usage = client.chat.completions.create(model="tiny", messages=messages).usage
    text = client.chat.completions.create(model="tiny", messages=user(text_part("say it"))).usage
    assert usage is not None
    assert text is not None
    assert usage.prompt_tokens > text.prompt_tokens + 2
    request = urllib.request.Request(
        f"{address}/tokenize",
        json.dumps({"messages": messages}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        tokens = json.load(response)["tokens"]
    assert len(tokens) == usage.prompt_tokens
    assert tokens.count(LazyImageProcessor(model)().token_id) > 1


def test_conversations_that_differ_in_an_image_get_their_own_answers(
    client: openai.OpenAI, model: llmctl.Model
) -> None:
    for number in (0, 3, 0):  # of one size, so that the ids are equal and only the images differ
        answer = client.chat.completions.create(
            model="tiny", messages=user(image_part(picture(number)), text_part("say it"))
        )
        image = {"type": "image", "image": picture(number)}
        assert answer.choices[0].message.content == model.generate(user(image, text_part("say it"))).text


def test_images_stand_beside_tools(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "string"}}}
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    messages = user(image_part(picture(0)), text_part("hi"))
    with_tools = client.chat.completions.create(model="tiny", messages=messages, tools=tools, max_tokens=1).usage
    plain = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1).usage
    assert with_tools is not None
    assert plain is not None
    assert with_tools.prompt_tokens > plain.prompt_tokens


def test_models_say_what_they_take(client: openai.OpenAI) -> None:
    [entry] = [one for one in client.models.list().data if one.id == "tiny"]
    assert entry.input_modalities == ["text", "image"]  # type: ignore[attr-defined]
    assert client.models.retrieve("tiny").input_modalities == ["text", "image"]  # type: ignore[attr-defined]


def test_a_model_for_text_refuses_images_and_says_so(tiny_models: Any) -> None:
    with served(str(tiny_models("llama")), "--model-name", "tiny") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert client.models.retrieve("tiny").input_modalities == ["text"]  # type: ignore[attr-defined]
        with pytest.raises(openai.BadRequestError, match="this model takes no images") as caught:
            client.chat.completions.create(model="tiny", messages=TWO)
        assert caught.value.param == "messages[0].content[0]"


# -- refusals


def refusal(client: openai.OpenAI, *parts: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=user(*parts), max_tokens=1)
    body: Any = caught.value.body
    assert body["type"] == "invalid_request_error"
    return body


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (data_url(b"not a picture"), "image 1 "),
        (data_url(encoded(picture(2))[:900]), "truncated"),
        (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "SVG"),
        ("data:image/png;base64,@@@@", "base64"),
        ("data:text/plain;base64,AAAA", "is not an image"),
        ("file:///etc/passwd", "fetches no images"),
        ("http://127.0.0.1:1/a.png", "fetches no images"),
        ("https://example.org/a.png", "fetches no images"),
    ],
)
def test_what_is_no_picture_is_refused_at_its_place(client: openai.OpenAI, url: str, message: str) -> None:
    body = refusal(client, text_part("say it"), image_part(url))
    assert message in body["message"]
    assert body["param"] == "messages[0].content[1]"


def test_the_place_of_a_refused_image_in_responses_is_that_of_the_input(client: openai.OpenAI) -> None:
    items: Any = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": data_url(b"no"), "detail": "low"}]},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input=items, instructions="be kind")
    assert caught.value.param == "input[1].content[0]"
    items[1]["content"][0] = {"type": "input_image", "file_id": "f", "image_url": data_url(encoded(picture(0)))}
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="tiny", input=items)


@pytest.mark.parametrize("role", ["tool", "assistant", "system"])
def test_images_of_other_roles_are_refused(client: openai.OpenAI, role: str) -> None:
    messages: Any = [*user(text_part("hi")), {"role": role, "content": [image_part(picture(0))], "tool_call_id": "1"}]
    with pytest.raises(openai.BadRequestError, match=f"not to one of the role {role}") as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert caught.value.param == "messages[1].content[0]"


def test_parts_of_another_type_are_refused_with_the_types_that_there_are(client: openai.OpenAI) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    assert "text, image_url or refusal" in refusal(client, sound)["message"]
    wrong = refusal(client, image_part(picture(0), detial="low"))
    assert wrong["param"] == "messages[0].content[0].image_url.detial"


def test_the_number_of_images_and_of_their_pixels_is_limited(client: openai.OpenAI) -> None:
    from PIL import Image

    body = refusal(client, *[image_part(picture(0))] * 17)
    assert body["param"] == "messages[0].content[16]"
    assert "16 images" in body["message"]
    large = image_part(data_url(encoded(Image.new("L", (8000, 5000)))))
    body = refusal(client, large, large)
    assert body["param"] == "messages[0].content[1]"
    assert "64,000,000 pixels together" in body["message"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_hostile_pictures_leave_no_memory_behind(folder: Path) -> None:
    from PIL import Image

    bomb = encoded(Image.new("L", (20_000, 20_000)))
    flood = random.Random(0).randbytes(3_000_000)
    largest = encoded(Image.new("L", (8000, 7900)))
    with served(str(folder), *SETTINGS) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

        def attack() -> None:
            for data in (bomb, flood, largest[: len(largest) // 2], bomb[:200]):
                refusal(client, image_part(data_url(data)))

        attack()
        before = _rss_of_server(url)
        for _ in range(4):
            attack()
        assert _rss_of_server(url) < before + 150_000_000
        assert client.chat.completions.create(model="tiny", messages=TWO).choices


def _rss_of_server(url: str) -> int:
    """Return the resident bytes of the process that listens at a URL."""
    port = int(url.rpartition(":")[2])
    listening = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(listening) and row[3] == "0A"}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(file.readlink()) in inodes for file in (process / "fd").iterdir()):
                return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    raise AssertionError("no process listens")


def test_large_images_do_not_stop_the_answers_of_others(client: openai.OpenAI) -> None:
    from PIL import Image

    client.chat.completions.create(model="tiny", messages=user(text_part("hi")), max_tokens=1)
    noise = Image.frombytes("RGB", (2500, 2000), random.Random(1).randbytes(15_000_000))
    large = [image_part(data_url(encoded(noise)))]  # 20 MB of base64
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(lambda: refusal(client, *large, image_part(data_url(b"no"))))
        waits = []
        while not slow.done():
            begin = time.monotonic()
            client.models.list()
            waits.append(time.monotonic() - begin)
        assert slow.result()["param"] == "messages[0].content[1]"
    assert max(waits) < 2, f"of {len(waits)} requests"


def test_a_server_whose_images_are_turned_off_says_so(folder: Path) -> None:
    with served(str(folder), *SETTINGS, "--set", "load.images=never") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert client.models.retrieve("tiny").input_modalities == ["text"]  # type: ignore[attr-defined]
        assert "load.images is never" in refusal(client, image_part(picture(0)))["message"]


def test_towers_that_cannot_be_loaded_fail_the_request_and_leave_the_server_up(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(folder, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    without = next(name for name in tensors if "visual" in name)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != without},
        damaged / "model.safetensors",
        metadata={"format": "pt"},
    )
    with served(str(damaged), *SETTINGS) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        body = refusal(client, image_part(picture(0)))
        assert "cannot load the model's parts for images" in body["message"]
        assert str(damaged) not in body["message"]
        assert client.chat.completions.create(model="tiny", messages=user(text_part("hi")), max_tokens=1).choices


# -- the reader alone: fetching, and the budget


def parts_of(*urls: str) -> list[Any]:
    message = Message.model_validate({"role": "user", "content": [image_part(url) for url in urls]})
    return placed_images("messages", [message])


def redirecting(location: str) -> tuple[Network, list[str]]:
    """Return a network in which every name leads to a public address, which redirects to `location`."""
    connected: list[str] = []

    def connect(address: str, port: int, seconds: float) -> socket.socket:
        connected.append(address)
        here, there = socket.socketpair()

        def answer() -> None:
            there.recv(65536)
            there.sendall(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())
            there.close()

        threading.Thread(target=answer, daemon=True).start()
        return here

    def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1" if host in ("127.0.0.1", "localhost") else "93.184.215.14"]

    return Network(resolve=resolve, connect=connect), connected


@pytest.mark.parametrize("location", ["http://127.0.0.1:8000/metrics", "http://localhost/", "file:///etc/passwd"])
def test_a_redirect_to_this_machine_is_refused(location: str, model: llmctl.Model) -> None:
    network, connected = redirecting(location)
    reader = ImageReader(LazyImageProcessor(model), fetches=True, fetch=partial(fetch_picture, network=network))
    with pytest.raises(RequestError) as caught:
        asyncio.run(reader.prepare(parts_of("http://example.org/a.png"), lambda pictures: pictures))
    assert caught.value.status == 400
    assert caught.value.param == "messages[0].content[0]"
    assert connected == ["93.184.215.14"]
    reader.close()


def test_a_fetched_image_is_read_like_one_that_was_sent(model: llmctl.Model) -> None:
    data = encoded(picture(1))

    def fetch(url: str, limits: PictureLimits) -> bytes:
        assert url == "https://example.org/a.png"
        return data

    reader = ImageReader(LazyImageProcessor(model), fetches=True, fetch=fetch)
    places = parts_of("https://example.org/a.png", data_url(data))
    fetched, sent = asyncio.run(reader.prepare(places, lambda pictures: pictures))
    assert fetched == sent
    reader.close()


@pytest.mark.parametrize(("detail", "size"), [("low", (512, 320)), ("high", (1024, 640)), ("original", (1024, 640))])
def test_low_detail_shrinks_an_image(detail: str, size: tuple[int, int], model: llmctl.Model) -> None:
    from PIL import Image

    part = image_part(Image.new("RGB", (1024, 640), "red"), detail=detail)
    message = Message.model_validate({"role": "user", "content": [part]})
    reader = ImageReader(LazyImageProcessor(model), fetches=False)
    [shrunk] = asyncio.run(reader.prepare(placed_images("messages", [message]), list))
    assert (shrunk.width, shrunk.height) == size
    assert shrunk.image().getpixel((5, 5)) == (255, 0, 0)
    reader.close()


def test_pictures_that_are_held_leave_no_room_for_others_until_they_are_released(model: llmctl.Model) -> None:
    reader = ImageReader(LazyImageProcessor(model), fetches=False, limits=ImageLimits(held_bytes=4000))

    def read() -> list[Picture]:
        return asyncio.run(reader.prepare(parts_of(data_url(encoded(picture(0)))), list))

    held = read()
    with pytest.raises(RequestError, match="try again later") as caught:
        read()
    assert caught.value.status == 429
    held.clear()

    def read_once_released() -> list[Picture]:  # a thread of the reader may hold the last picture a moment longer
        deadline = time.monotonic() + 30
        while True:
            try:
                return read()
            except RequestError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    assert len(read_once_released()) == 1
    reader.close()
