"""The fleet's authority: which machine is which. Whether a machine still belongs is for the records to
say (enrol.py), so that nothing signed here expires, and no clock has to be right.

HOME/hub/   hub.json       where the hub is found           ca.pem ca.key     sign all others
            server.*       broker and door are known by it  hub.* clerk.*     the hub's own two credentials
            signing.key    for addresses of the door        a device's pair goes into its bundle
`ca.key` comes last: while it is not there nothing was signed for anybody, and all is made anew.
"""

import fcntl
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from fleetfold.bundle import private
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.layout import checked_name

HUB = "hub"
"""The name in the hub's own two credentials; no device may take it."""
HUB_ID, CLERK_ID = f"{1:016x}", f"{2:016x}"
"""The one that talks to the devices; the one that tells the broker who belongs (broker.py)."""
FIRST = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""Since ever and for ever (RFC 5280, 4.1.2.5): a box that lost its clock begins in 1970."""
REQUEST = 64 * 1024
"""Characters of a signing request, at most; real ones have a thousand."""
RSA_BITS = range(2048, 8193)
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")


class Site(Struct, frozen=True, kw_only=True):
    """Where the hub is found; `websockets` 0: not that way."""

    fleet: str = "main"
    hosts: tuple[str, ...]
    mqtt: int = 8883
    websockets: int = 0
    door: int = 8443
    door_url: str = ""  # where devices find the door, if not at its own port: behind a NAT, say
    objects: str = ""  # the store where its runs keep theirs, s3://BUCKET/PREFIX; "": files here, by the door
    listen: str = ""  # the address that all of them are bound to; "": every one of this machine

    @property
    def base(self) -> str:
        """The door's address, as devices are told it."""
        return self.door_url or f"https://{_bracketed(self.hosts[0])}:{self.door}"

    @property
    def brokers(self) -> tuple[str, ...]:
        """The broker's addresses in the order in which a device tries them."""
        hosts = [_bracketed(host) for host in self.hosts]
        plain = [f"mqtts://{host}:{self.mqtt}" for host in hosts]
        return (*plain, *(f"wss://{host}:{self.websockets}/mqtt" for host in hosts if self.websockets))


class Authority(Struct, frozen=True):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def create(folder: Path, site: Site) -> None:
    """Make a new hub's authority and everything that it signs for the hub itself. Raises BadConfig if
    there is one."""
    _check(site)
    with locked(folder):
        if (folder / "ca.key").exists():
            raise BadConfig(
                f"{folder} has an authority already, and devices may know it",
                next="fleetfold enroll DEVICE; or set FLEETFOLD_HOME for another hub",
            )
        authority = new(site.fleet)
        private(folder / "hub.json", msgspec.json.format(msgspec.json.encode(site)) + b"\n")
        private(folder / "signing.key", secrets.token_bytes(32))
        _save(folder, "server", server_pair(authority, site.hosts))
        _save(folder, "hub", device_pair(authority, HUB, HUB_ID))
        _save(folder, "clerk", device_pair(authority, HUB, CLERK_ID))
        _save(folder, "ca", (authority.pem, _pem(authority.key)))


def site(folder: Path) -> Site:
    """Raises BadConfig."""
    path = folder / "hub.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Site)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}", next="fleetfold hub init") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} does not describe a hub: {error}") from None


def load(folder: Path) -> Authority:
    """Raises BadConfig."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except OSError as error:
        raise BadConfig(f"{error.filename}: {error.strerror}", next="fleetfold hub init") from None
    except ValueError as error:
        raise BadConfig(f"the authority in {folder} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise BadConfig(f"ca.key and ca.pem in {folder} do not belong together")
    return Authority(certificate, key)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One at a time changes what lies in the hub's folder, or what the broker knows of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise Unavailable(f"cannot open {folder / 'lock'}: {error.strerror}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# What it signs


def new(fleet: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fleetfold {fleet}"[:64].lower())])
    builder = _certificate(name, name, key.public_key(), key.public_key(), x509.random_serial_number())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_others=True), critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def server_pair(authority: Authority, hosts: Sequence[str]) -> tuple[str, str]:
    """Certificate and key of whoever answers under these names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fleetfold hub")])
    builder = _certificate(
        name, authority.certificate.subject, key.public_key(), authority.key.public_key(),
        x509.random_serial_number(),
    )  # fmt: skip
    builder = builder.add_extension(x509.SubjectAlternativeName([_alias(h) for h in hosts]), critical=False)
    return _signed(authority, builder, ExtendedKeyUsageOID.SERVER_AUTH), _pem(key)


def device_pair(authority: Authority, device: str, id: str) -> tuple[str, str]:
    """Certificate and key of a device that has not made its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return device_certificate(authority, key.public_key(), device, id), _pem(key)


def device_certificate(authority: Authority, key: CertificatePublicKeyTypes, device: str, id: str) -> str:
    """That whoever holds `key` is `device`, by the credential with that id; the serial number is the id."""
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, device), x509.NameAttribute(NameOID.SERIAL_NUMBER, id)]
    )
    builder = _certificate(name, authority.certificate.subject, key, authority.key.public_key(), int(id, 16))
    return _signed(authority, builder, ExtendedKeyUsageOID.CLIENT_AUTH)


def requested_key(request: str) -> CertificatePublicKeyTypes:
    """The key of a signing request; who it says that it is does not count. Raises BadConfig unless its
    sender holds that key and nobody can guess it."""
    try:
        found = x509.load_pem_x509_csr(request[:REQUEST].encode())
        key = found.public_key()
        if not found.is_signature_valid:
            raise BadConfig("the signing request is not signed by the key that is in it")
    except (ValueError, UnsupportedAlgorithm):
        raise BadConfig(
            "this is no signing request in PEM, or not one of a key that is known here",
            next="openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
            "-subj /CN=device -keyout device.key -out device.csr",
        ) from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_BITS and key.public_numbers().e >= 65537:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES):
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise BadConfig(
        "the signing request's key is not one of P-256, P-384, P-521, Ed25519, or RSA of "
        f"{RSA_BITS.start} to {RSA_BITS.stop - 1} bits"
    )


def revocations(authority: Authority, ids: Sequence[str]) -> str:
    """The list of the certificates that count no more. Lists only grow, and of two lists the later one
    is in force: its time is how long it is, since two may come in one second."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    at = datetime.fromtimestamp(len(ids), UTC)
    builder = builder.last_update(at).next_update(LAST)
    builder = builder.add_extension(_by(authority.key.public_key()), critical=False)
    builder = builder.add_extension(x509.CRLNumber(len(ids)), critical=False)
    for id in ids:
        revoked = x509.RevokedCertificateBuilder().serial_number(int(id, 16)).revocation_date(FIRST).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def issuer_hash(authority: Authority) -> str:
    """What OpenSSL calls the files of this issuer: the SHA-1 of its name without the outermost header. It
    takes names in lower case, as `new` gives them."""
    name = authority.certificate.subject.public_bytes()
    assert name[1] < 128  # the header has two bytes
    return hashlib.sha1(name[2:], usedforsecurity=False).digest()[3::-1].hex()


def _certificate(
    name: x509.Name, issuer: x509.Name, key: CertificatePublicKeyTypes, by: ec.EllipticCurvePublicKey,
    serial: int,
) -> x509.CertificateBuilder:  # fmt: skip
    builder = x509.CertificateBuilder(issuer, name, key, serial, FIRST, LAST)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(_by(by), critical=False)


def _by(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _signed(authority: Authority, builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier) -> str:
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_others=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _usage(*, signs_others: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_others, key_cert_sign=signs_others, crl_sign=signs_others,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _alias(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check(site: Site) -> None:
    checked_name(site.fleet, "--fleet")
    for host in site.hosts:
        if isinstance(_alias(host), x509.DNSName) and not _HOST.fullmatch(host):
            raise BadConfig(f"--host {host[:80]!r} is neither a host's name nor an address")
    ports = [port for port in (site.mqtt, site.door, site.websockets) if port]
    if not site.hosts:
        raise BadConfig("a hub needs a name or an address: --host NAME")
    if len(ports) != len(set(ports)) or not all(0 < port < 65536 for port in ports):
        raise BadConfig(f"ports {', '.join(map(str, ports))}: each has to be another one, from 1 to 65535")


def _save(folder: Path, name: str, pair: tuple[str, str]) -> None:
    private(folder / f"{name}.pem", pair[0].encode())
    private(folder / f"{name}.key", pair[1].encode())


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
