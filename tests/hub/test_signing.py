"""An address allows what it says, to whom it says, until when it says, and not one letter else."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfold.errors import BadConfig
from fleetfold.hub.signing import HubSigner, Refusal, check

SECRET = b"s" * 32
KEY = "runs/r/rounds/000001/updates/a.safetensors"
NOW = 1_000.5
signer = HubSigner(SECRET, "https://hub:8443/", lambda: NOW)


def path(address: str) -> str:
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "hub:8443", "")
    return f"{parts.path}?{parts.query}"


def refusal(method: str, asked: str, device: str = "a", now: float = NOW) -> int:
    with pytest.raises(Refusal) as caught:
        check(SECRET, method, asked, device, now)
    assert "\n" not in caught.value.sentence
    return caught.value.status


GET = path(signer.to_fetch(KEY, "a", 60.0))
PUT = path(signer.to_deliver(KEY, "a", 60.0, most=500))


def test_an_address_allows_what_it_says() -> None:
    assert check(SECRET, "GET", GET, "a", NOW) == (KEY, 0)
    assert check(SECRET, "PUT", PUT, "a", NOW) == (KEY, 500)


def test_whoever_may_get_or_put_may_ask_what_is_there() -> None:
    assert check(SECRET, "HEAD", GET, "a", NOW).key == KEY
    assert check(SECRET, "HEAD", PUT, "a", NOW).key == KEY


@pytest.mark.parametrize(("method", "asked"), [("PUT", GET), ("GET", PUT), ("DELETE", PUT), ("get", GET)])
def test_an_address_is_for_its_own_method(method: str, asked: str) -> None:
    assert refusal(method, asked) == 403


@pytest.mark.parametrize("device", ["b", "", "A", "a\n", "a&device=b"])
def test_an_address_is_for_its_own_device(device: str) -> None:
    assert refusal("GET", GET, device) == 403


def test_an_address_is_good_to_the_second_that_it_names() -> None:
    assert check(SECRET, "GET", GET, "a", 1_061.0).key == KEY
    assert refusal("GET", GET, now=1_061.1) == 410


@pytest.mark.parametrize("secret", [b"", b"t" * 32, SECRET[:-1]])
def test_another_secret_signs_nothing_here(secret: bytes) -> None:
    assert (
        refusal("GET", path(HubSigner(secret, "https://hub:8443", lambda: NOW).to_fetch(KEY, "a", 9.0)))
        == 403
    )


@pytest.mark.parametrize("address", [GET, PUT])
def test_no_letter_of_an_address_can_be_another(address: str) -> None:
    for k, letter in enumerate(address):
        for other in "0aA&/.%= ":
            if other != letter:
                assert refusal("GET", address[:k] + other + address[k + 1 :]) == 403
        assert refusal("GET", address[:k] + address[k + 1 :]) == 403


@pytest.mark.parametrize(
    "changed",
    [
        PUT.replace("most=500", "most=5000"),
        PUT.replace("most=500", "most=500&most=5000"),
        PUT.replace("most=500", "most=500&more=1"),
        PUT.replace("&most=500", ""),
        PUT.replace("until=1061", "until=2061"),
        PUT.replace("/objects/", "/objects/../objects/"),
        PUT.replace("/objects/", "//objects/"),
        PUT.replace("runs/r", "runs%2Fr"),
        PUT.replace("a.safetensors", "%61.safetensors"),
        PUT.replace("device=a&method=PUT", "method=PUT&device=a"),
        PUT + "&most=5000",
        "/x" + PUT,
        "https://hub:8443" + PUT,
        PUT + PUT[PUT.index("&signature") :],
        PUT.replace("signature", "Signature"),
        PUT[:-64] + PUT[-64:].upper(),
        PUT[:-64] + "é" * 64,
        PUT[:-64],
        PUT[: PUT.index("&signature")],
        "",
        "&signature=",
    ],
)
def test_what_means_the_same_to_others_is_no_address_here(changed: str) -> None:
    assert refusal("PUT", changed) == 403


@given(st.text(st.characters(codec=None), max_size=200))
def test_no_text_at_all_is_an_address(text: str) -> None:
    assert refusal("GET", text) == 403


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=60))
def test_every_key_that_can_be_signed_comes_back_as_it_was(key: str) -> None:
    try:
        address = path(signer.to_fetch(key, "a", 9.0))
    except BadConfig:
        assert not key.isprintable() or {"", ".", ".."} & set(key.split("/"))
        return
    assert address.isascii()
    assert check(SECRET, "GET", address, "a", NOW).key == key


@pytest.mark.parametrize("key", ["", "/", "a//b", "/a", "a/", "../a", "a/../b", "a/./b", "..", "a\nb", "a\0"])
def test_no_address_leads_out_of_the_objects(key: str) -> None:
    with pytest.raises(BadConfig):
        signer.to_fetch(key, "a", 9.0)


def test_no_address_is_made_for_what_cannot_be_a_device() -> None:
    with pytest.raises(BadConfig):
        signer.to_deliver(KEY, "a&device=b", 9.0, 1)
