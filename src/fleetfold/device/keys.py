"""A key that never leaves its device: made here by openssl, with a request that the hub signs."""

import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

from msgspec.structs import replace

from fleetfold import bundle, layout
from fleetfold.bundle import Bundle
from fleetfold.errors import BadConfig


def request(device: str, out: Path) -> Path:
    """Write a signing request for the device to `out`, and its key beside it. An older key there is kept.
    → the key. Raises BadConfig."""
    layout.checked_name(device, "device")
    if shutil.which("openssl") is None:
        raise BadConfig(
            "a signing request needs the command openssl, which is not here",
            next="install openssl, or have the hub make the key: fleetfold enroll DEVICE",
        )
    key = out.with_name(out.name.removesuffix(".csr") + ".key")
    if not key.exists():
        bundle.private(key, _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"))
    made = _openssl("req", "-new", "-sha256", "-key", str(key), "-subj", f"/CN={device}")
    try:
        out.write_bytes(made)
    except OSError as error:
        raise BadConfig(f"cannot write {out}: {error.strerror}") from None
    return key


def with_key(given: Bundle, key: Path | None) -> Bundle:
    """The bundle with its key, which must be its certificate's; who polls has neither. Raises BadConfig."""
    if given.poll[0]:
        return given
    if key is not None:
        try:
            given = replace(given, key=key.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise BadConfig(f"{key}: {error}") from None
    if not given.key:
        raise BadConfig(
            "there is no key in the bundle: the device made its own", next="fleetfold join BUNDLE --key FILE"
        )
    with tempfile.TemporaryDirectory() as folder:  # 0700; ssl reads keys from files alone
        place = Path(folder) / "identity.pem"
        place.write_text(given.certificate + "\n" + given.key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(place, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", "") or str(error)
            raise BadConfig(
                f"key and certificate of {given.device} do not belong together: {reason}"
            ) from None
    return given


def _openssl(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=60, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
        raise BadConfig(f"openssl {arguments[0]}: {said[-1]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadConfig(f"openssl {arguments[0]}: {error}") from None
    return done.stdout
