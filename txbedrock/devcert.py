"""
A local authority and a certificate for this machine: ``python -m txbedrock.devcert``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.internet.endpoints import quoteStringArgument

__all__ = ["DevCertificate", "main", "make"]

_CA_DAYS = 3650
_DAYS = 365
_SKEW = timedelta(hours=1)
"""Clocks differ: what is made now is valid from a little before."""

_LONGEST_NAME = 64
"""Characters of a common name."""


@dataclass(frozen=True, slots=True)
class DevCertificate:
    """What was made, and where it is."""

    ca: str
    """The authority's certificate, for clients to trust."""

    certificate: str
    key: str
    names: tuple[str, ...]
    expires: datetime
    new_ca: bool
    """Clients have to be told of it."""


def make(folder: str, more_names: Sequence[str] = ()) -> DevCertificate:
    """
    Make a certificate for this machine, and an authority if there is none yet.

    :param folder: made if it is not there. Its files are kept out of git.
    :param more_names: of hosts, and addresses, beside localhost and this host's own.
    :raises OSError: nothing can be written there.
    :raises ValueError: a name is none, or what is there is no authority.
    """
    folder = os.path.abspath(folder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    ignored = os.path.join(folder, ".gitignore")
    if not os.path.exists(ignored):
        _write(ignored, b"*\n", 0o644)
    now = datetime.now(UTC)
    paths = {name: os.path.join(folder, f"{name}.pem") for name in ("ca", "ca-key", "cert", "key")}
    ca, ca_key, new_ca = _authority(paths["ca"], paths["ca-key"], now)

    names = tuple(dict.fromkeys(("localhost", "127.0.0.1", "::1", *_host(), *more_names)))
    key = ec.generate_private_key(ec.SECP256R1())
    expires = min(now + timedelta(days=_DAYS), ca.not_valid_after_utc)
    certificate = (
        _builder("localhost", key.public_key(), now, expires)
        .issuer_name(ca.subject)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(paths["key"], _pem_of_key(key), 0o600)
    _write(paths["cert"], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return DevCertificate(
        paths["ca"], paths["cert"], paths["key"], names, certificate.not_valid_after_utc, new_ca
    )


def _authority(
    path: str, key_path: str, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, bool]:
    """The one that is there, or a new one if it is not or will soon have expired."""
    if os.path.exists(path) and os.path.exists(key_path):
        with open(path, "rb") as file, open(key_path, "rb") as key_file:
            ca = x509.load_pem_x509_certificate(file.read())
            key = serialization.load_pem_private_key(key_file.read(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or ca.public_key() != key.public_key():
            raise ValueError(f"{path} and {key_path} do not belong together: remove both")
        if ca.not_valid_after_utc > now + timedelta(days=30):
            return ca, key, False
    key = ec.generate_private_key(ec.SECP256R1())
    expires = now + timedelta(days=_CA_DAYS)
    name = f"txbedrock development CA of {socket.gethostname()}"[:_LONGEST_NAME]
    ca = (
        _builder(name, key.public_key(), now, expires)
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _pem_of_key(key), 0o600)
    _write(path, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    return ca, key, True


def _builder(
    name: str, public_key: ec.EllipticCurvePublicKey, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host() -> tuple[str, ...]:
    """This host's own name, if it is one that a certificate can hold."""
    name = socket.gethostname()
    return (name,) if name and name.isascii() else ()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: str, content: bytes, mode: int) -> None:
    """In one step: who reads it at this moment gets the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _next_lines(made: DevCertificate) -> str:
    cert, key = (quoteStringArgument(path) for path in (made.certificate, made.key))
    listen = shlex.quote(f"tls:4443:cert={cert}:key={key}")
    ca = shlex.quote(made.ca)
    authority = "new" if made.new_ca else "the one that was there"
    return f"""\
The certificate is for {", ".join(made.names)},
valid until {made.expires:%Y-%m-%d}; its authority is {authority}.
Only this machine should trust it.

Start the gateway with it (one that runs takes a renewed certificate at SIGHUP):

  twistd -n bedrockproxy --config config.yaml --listen {listen}

and tell its clients of the authority:

  export AWS_CA_BUNDLE={ca}          # AWS CLI, boto3
  export NODE_EXTRA_CA_CERTS={ca}    # Node.js: AWS SDK for JavaScript, Claude Code
  export SSL_CERT_FILE={ca}          # Python: httpx, Anthropic's SDK
  curl --cacert {ca} https://localhost:4443/health/readiness"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Make one and say what to do with it.

    :returns: the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m txbedrock.devcert",
        description="Make a certificate for this machine, and an authority if there is none yet.",
    )
    parser.add_argument("--folder", default=".tls", help="where [default: .tls]")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a further host name or address")
    options = parser.parse_args(arguments)
    try:
        made = make(options.folder, options.names)
    except (OSError, ValueError) as error:
        print(f"devcert: {error}", file=sys.stderr)
        return 1
    print(_next_lines(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
