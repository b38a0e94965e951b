"""The authority: made once and never changed, keys for its owner alone, certificates for good keys only."""

import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from fleetfold import bundle
from fleetfold.adapters.faults import Died
from fleetfold.errors import BadConfig
from fleetfold.hub import authority
from fleetfold.hub.authority import Site

SITE = Site(hosts=("hub.example", "10.0.0.1"), websockets=443)
MADE = {"hub.json", "signing.key", "lock"} | {
    f"{name}.{kind}" for name in ("ca", "server", "hub", "clerk") for kind in ("pem", "key")
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fits(folder: Path, name: str) -> bool:
    """Whether the certificate is of that key, and signed by the authority in the folder."""
    certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
    certificate.verify_directly_issued_by(authority.load(folder).certificate)
    key = load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    return certificate.public_key() == key.public_key()


def test_a_new_hub_has_its_authority_and_certificates_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    authority.create(folder, SITE)
    assert set(contents(folder)) == MADE
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = [path for path in folder.iterdir() if path.suffix in (".key", ".pem", ".json")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert all(fits(folder, name) for name in ("ca", "server", "hub", "clerk"))
    assert authority.site(folder) == SITE
    assert len((folder / "signing.key").read_bytes()) == 32


def test_the_site_says_where_its_broker_is(tmp_path: Path) -> None:
    assert SITE.brokers == (
        "mqtts://hub.example:8883", "mqtts://10.0.0.1:8883", "wss://hub.example:443/mqtt",
        "wss://10.0.0.1:443/mqtt",
    )  # fmt: skip
    assert Site(hosts=("::1",)).brokers == ("mqtts://[::1]:8883",)


def test_an_authority_that_is_there_is_never_changed(tmp_path: Path) -> None:
    authority.create(tmp_path, SITE)
    before = contents(tmp_path)
    with pytest.raises(BadConfig, match="has an authority already"):
        authority.create(tmp_path, Site(fleet="other", hosts=("other",)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("step", range(20))
def test_who_dies_making_it_leaves_what_the_next_one_replaces_or_one_that_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A step before and one after each of its ten files."""
    steps = iter(range(20))

    def mortal(path: Path, data: bytes) -> None:
        for write in (lambda: bundle.private(path, data), lambda: None):
            if next(steps) == step:
                raise Died
            write()

    with monkeypatch.context() as patched:
        patched.setattr(authority, "private", mortal)
        with pytest.raises(Died):
            authority.create(tmp_path, SITE)
    if (tmp_path / "ca.key").exists():
        with pytest.raises(BadConfig, match="already"):
            authority.create(tmp_path, SITE)
    else:
        with pytest.raises(BadConfig, match="fleetfold hub init"):
            authority.load(tmp_path)
        authority.create(tmp_path, SITE)
    assert set(contents(tmp_path)) == MADE
    assert all(fits(tmp_path, name) for name in ("ca", "server", "hub", "clerk"))


def test_of_two_who_make_it_at_once_one_does(tmp_path: Path) -> None:
    told: list[str] = []

    def make(fleet: str) -> None:
        try:
            authority.create(tmp_path, Site(fleet=fleet, hosts=("h",)))
            told.append(fleet)
        except BadConfig as error:
            told.append(error.sentence)

    threads = [threading.Thread(target=make, args=(f"fleet-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("already" in word for word in told) == 3
    assert authority.site(tmp_path).fleet in told
    assert all(fits(tmp_path, name) for name in ("ca", "server", "hub", "clerk"))


@pytest.mark.parametrize(("site", "said"), [
    (Site(hosts=()), "needs a name"),
    (Site(hosts=("a b",)), "neither a host's name nor an address"),
    (Site(hosts=("-a",)), "neither"),
    (Site(hosts=("a" * 64,)), "neither"),
    (Site(hosts=("h",), fleet="a/b"), "is not a name"),
    (Site(hosts=("h",), fleet="#"), "is not a name"),
    (Site(hosts=("h",), mqtt=8443), "ports"),
    (Site(hosts=("h",), websockets=65536), "ports"),
    (Site(hosts=("h",), door=-1), "ports"),
])  # fmt: skip
def test_a_site_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, site: Site, said: str
) -> None:
    with pytest.raises(BadConfig, match=said):
        authority.create(tmp_path / "hub", site)
    assert not (tmp_path / "hub").exists()


def test_certificates_hold_on_a_box_without_a_clock_and_a_hundred_years_on() -> None:
    own = authority.new("main")
    made, _ = authority.device_pair(own, "a", "00000000000000aa")
    certificate = x509.load_pem_x509_certificate(made.encode())
    for each in (own.certificate, certificate):
        assert each.not_valid_before_utc.year == 1970
        assert each.not_valid_after_utc.year == 9999


# Signing requests


def request(key: CertificateIssuerPrivateKeyTypes, name: str = "device") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("hub")]), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def test_of_a_signing_request_nothing_but_its_key_is_taken() -> None:
    own, key = authority.new("main"), ec.generate_private_key(ec.SECP256R1())
    wanted = authority.requested_key(request(key, name="hub"))
    made = authority.device_certificate(own, wanted, "a", "00000000000000aa")
    certificate = x509.load_pem_x509_certificate(made.encode())
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "2.5.4.5=00000000000000aa,CN=a"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


GOOD = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
}
WEAK = {
    "RSA 1024": lambda: rsa.generate_private_key(65537, 1024),
    "RSA with exponent 3": lambda: rsa.generate_private_key(3, 2048),
    "DSA": lambda: dsa.generate_private_key(2048),
    "a curve of 160 bits": lambda: ec.generate_private_key(ec.SECP192R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_key_of_a_good_kind_is_taken(kind: str) -> None:
    key = GOOD[kind]()
    assert authority.requested_key(request(key)) == key.public_key()


@pytest.mark.parametrize("kind", WEAK)
def test_a_key_that_can_be_guessed_or_is_not_known_everywhere_is_refused(kind: str) -> None:
    with pytest.raises(BadConfig, match="key"):
        authority.requested_key(request(WEAK[kind]()))


def _forged() -> str:
    """Somebody else's key: what is signed is changed after."""
    own = request(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(own.encode()).public_bytes(Encoding.DER))
    der[der.index(b"device")] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("text", [
    "", "no request", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "\udcff", "x" * 10_000_000, _forged(),
], ids=["empty", "text", "no DER", "no characters", "endless", "forged"])  # fmt: skip
def test_what_is_no_signing_request_is_refused(text: str) -> None:
    with pytest.raises(BadConfig, match="signing request"):
        authority.requested_key(text)
