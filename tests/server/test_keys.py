"""API keys: their sources, and that no output shows them."""

from pathlib import Path

import pytest

from llmctl.errors import UserError
from llmctl.server.security.keys import Keys, check_bind_address, is_loopback, read_keys

KEY = "k3y-of-the-first-client"
OTHER = "k3y-of-the-second-client"


def test_a_file_has_one_key_per_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# first client\n{KEY}\n\n  {OTHER}  \r\n")
    keys = read_keys(file, environ={"LLMCTL_API_KEY": "ignored-because-there-is-a-file"})
    assert keys is not None
    assert [keys.accepts(key.encode()) for key in (KEY, OTHER)] == [True, True]
    assert not keys.accepts(b"ignored-because-there-is-a-file")
    assert not keys.accepts(b"# first client")


def test_keys_come_from_the_environment() -> None:
    keys = read_keys(None, environ={"LLMCTL_API_KEY": f"{KEY}, {OTHER}"})
    assert keys is not None
    assert keys.source == "LLMCTL_API_KEY"
    assert keys.accepts(KEY.encode())
    assert keys.accepts(OTHER.encode())
    assert read_keys(None, environ={}) is None


@pytest.mark.parametrize("wrong", [b"", KEY[:-1].encode(), KEY.encode() + b"x", KEY.upper().encode(), b"\xff\xfe"])
def test_only_a_complete_key_is_accepted(wrong: bytes) -> None:
    assert not Keys.from_plain([KEY, OTHER], source="here").accepts(wrong)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other keys are compared too after a match, by hmac's function."""
    import hmac

    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(len(a))
        return a == b

    keys = Keys.from_plain([KEY, OTHER, "third-key-of-them-all"], source="here")
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.accepts(KEY.encode())
    assert compared == [32, 32, 32]


def test_no_repr_shows_a_key() -> None:
    keys = Keys.from_plain([KEY], source="here")
    assert KEY not in repr(keys) + str(keys) + str(vars(keys))
    assert "digest" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no API key"),
        ("# only a comment\n", "no API key"),
        ("short-hush\n", "API key 1"),
        (f"{KEY}\ntwo words-hush-in-one\n", "API key 2"),
        ("clé-hush-et-longue-assez\n", "API key 1"),
    ],
)
def test_a_bad_key_is_named_by_its_number_and_never_shown(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=named) as caught:
        read_keys(file)
    assert "hush" not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_keys(tmp_path / "missing")
    (tmp_path / "weights").write_bytes(bytes(100_000))
    with pytest.raises(UserError):
        read_keys(tmp_path / "weights")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError):
        read_keys(tmp_path / "bytes")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_the_loopback_needs_no_key(host: str) -> None:
    check_bind_address(host, None, without_key=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "localhost.evil.example", "my-machine", ""])
def test_another_address_needs_a_key_or_explicit_consent(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UserError) as caught:
        check_bind_address(host, None, without_key=False)
    assert "--no-api-key" in str(caught.value.hint)
    check_bind_address(host, None, without_key=True)
    check_bind_address(host, Keys.from_plain([KEY], source="here"), without_key=False)
