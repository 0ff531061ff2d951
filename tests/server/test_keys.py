"""API keys: where they come from, and that they show up nowhere."""

from pathlib import Path

import pytest

from llmctl.errors import UserError
from llmctl.server.security.keys import Keys, is_loopback, read_keys, refuse_open_door

KEY = "k3y-of-the-first-client"
OTHER = "k3y-of-the-second-client"


def test_keys_come_from_a_file_with_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# first client\n{KEY}\n\n  {OTHER}  \r\n")
    keys = read_keys(file, environ={"LLMCTL_API_KEY": "not-looked-at-when-there-is-a-file"})
    assert keys is not None
    assert [keys.open_to(key.encode()) for key in (KEY, OTHER)] == [True, True]
    assert not keys.open_to(b"not-looked-at-when-there-is-a-file")
    assert not keys.open_to(b"# first client")


def test_keys_come_from_the_environment() -> None:
    keys = read_keys(None, environ={"LLMCTL_API_KEY": f"{KEY}, {OTHER}"})
    assert keys is not None
    assert keys.source == "LLMCTL_API_KEY"
    assert keys.open_to(KEY.encode())
    assert keys.open_to(OTHER.encode())
    assert read_keys(None, environ={}) is None


@pytest.mark.parametrize("wrong", [b"", KEY[:-1].encode(), KEY.encode() + b"x", KEY.upper().encode(), b"\xff\xfe"])
def test_only_the_whole_key_opens(wrong: bytes) -> None:
    assert not Keys.of([KEY, OTHER], source="here").open_to(wrong)


def test_a_key_is_compared_in_constant_time_with_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first key is found, and the others are compared all the same, by hmac's function."""
    import hmac

    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(len(a))
        return a == b

    keys = Keys.of([KEY, OTHER, "third-key-of-them-all"], source="here")
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.open_to(KEY.encode())
    assert compared == [32, 32, 32]


def test_a_key_shows_up_in_no_repr() -> None:
    keys = Keys.of([KEY], source="here")
    assert KEY not in repr(keys) + str(keys) + str(vars(keys))
    assert "digest" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no API key"),
        ("# only a comment\n", "there is no API key"),
        ("short-hush\n", "API key 1 .* has fewer than 16 characters"),
        (f"{KEY}\ntwo words-hush-in-one\n", "API key 2 .* has spaces"),
        ("clé-hush-et-longue-assez\n", "API key 1 .* not ASCII"),
    ],
)
def test_a_bad_key_is_named_by_its_number_and_never_shown(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_keys(file)
    assert "hush" not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_keys(tmp_path / "missing")
    (tmp_path / "weights").write_bytes(bytes(100_000))
    with pytest.raises(UserError, match="is it the right one"):
        read_keys(tmp_path / "weights")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        read_keys(tmp_path / "bytes")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_the_loopback_needs_no_key(host: str) -> None:
    refuse_open_door(host, None, without_key=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "localhost.evil.example", "my-machine", ""])
def test_another_address_needs_a_key_or_an_explicit_word(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UserError, match="no API key is set") as caught:
        refuse_open_door(host, None, without_key=False)
    assert "--no-api-key" in str(caught.value.hint)
    refuse_open_door(host, None, without_key=True)
    refuse_open_door(host, Keys.of([KEY], source="here"), without_key=False)
