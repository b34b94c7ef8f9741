"""
TLS towards clients: certificates from files, and who a client's certificate is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from txbedrock.core.auth import ClientCertificate
from txbedrock.writing import TLSTransport

__all__ = [
    "BadCertificate",
    "ServedCertificate",
    "ServerTLS",
    "TLSConnection",
    "TLSFactory",
    "TLSFiles",
    "TLSMaterial",
    "client_certificate",
    "read_tls",
]

# Note [What TLS is like here]
# ----------------------------
# TLS 1.2 and 1.3. Of 1.2 only what is authenticated encryption with forward secrecy,
# which is also all that HTTP/2 allows; the order is ours. No compression and no
# renegotiation. Sessions are resumed by tickets, for which nothing is kept here. Their
# keys belong to a context, and a reload makes new contexts: then every client shakes
# hands in full once, and its certificate is verified against the authorities that are
# trusted now.
#
# A context is made in a thread and never changed again. Connections that are open keep
# the one they began with.

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
_SESSIONS_OF = b"txbedrock"
_LONGEST_CHAIN = 10


class BadCertificate(Exception):
    """A certificate or its key cannot be used. It says in one line why not."""


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Where a listener's key and certificates are, in PEM files."""

    certificate: str = ""
    """The certificate, and those that lead from it to an authority."""

    key: str = ""
    """May be the same file."""

    chain: str = ""
    """Further certificates of the chain; empty: there are none."""

    folder: str = ""
    """In place of the others: all ``*.pem`` in it, chosen by the name a client asks for."""

    client_ca: str = ""
    """The authorities of clients' certificates; empty: clients are not asked for one."""

    client_required: bool = True
    """Is a client without a certificate turned away?"""


@dataclass(frozen=True, slots=True)
class ServedCertificate:
    """What there is to say of a certificate."""

    subject: str
    names: tuple[str, ...]
    """Those it is good for: of hosts, and addresses."""

    begins: float
    """POSIX seconds."""

    expires: float

    def __str__(self) -> str:
        names = f" for {', '.join(self.names)}" if self.names else ""
        return f"{self.subject or 'a certificate'}{names}, valid until {_iso(self.expires)}"


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """What was made of a listener's files."""

    certificates: tuple[ServedCertificate, ...]
    context: SSL.Context = field(repr=False)
    """Of a client that asks for no name, or for one that is not there."""


def read_tls(files: TLSFiles, protocols: Sequence[bytes] = ()) -> TLSMaterial:
    """
    Read the files and make of them what serves connections. It blocks.

    :param protocols: what ALPN offers, the preferred one first.
    :raises BadCertificate: one of the files cannot be used.
    """
    pairs = _pairs_in(files.folder) if files.folder else [_pair(files)]
    authorities = _certificates_in(files.client_ca) if files.client_ca else []
    contexts = [_context(pair, files, authorities, protocols) for pair in pairs]
    served = tuple(_served(pair.certificate) for pair in pairs)
    if files.folder:
        _choose_by_name(contexts, served)
    for context in contexts:
        # pyOpenSSL takes a context for used after this, and changes it no more.
        context.set_cipher_list(_CIPHERS)
    return TLSMaterial(served, contexts[0])


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """
    Serves each new connection with what was read last.

    :param material: of :func:`read_tls`.
    """

    def __init__(self, material: TLSMaterial) -> None:
        self.material = material

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.material.context)


class TLSConnection(TLSTransport):
    """The TLS of one connection."""

    _log = Logger()

    @cached_property
    def client_certificate(self) -> ClientCertificate | None:
        """The client's own, which OpenSSL has verified; None: it has shown none."""
        connection = self._tlsConnection
        shown = None if connection is None else connection.get_peer_certificate()
        return None if shown is None else _identity(shown)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        problem = None if self._handshakeDone or self._reason is None else self._reason.value
        if isinstance(problem, SSL.Error):
            self._log.info(
                "{peer} refused in the TLS handshake: {why}",
                peer=getattr(self.getPeer(), "host", "-"),
                why=_in_words(problem),
            )
        super().connectionLost(reason)


class TLSFactory(TLSMemoryBIOFactory):
    """Puts TLS around the connections of another factory."""

    protocol = TLSConnection


def client_certificate(transport: object) -> ClientCertificate | None:
    """
    Who a client says it is in the handshake, whatever protocol the connection carries.

    :param transport: of an HTTP channel. All streams of a connection share it.
    :returns: None over plain HTTP, and for a client that has shown no certificate.
    """
    found = getattr(transport, "client_certificate", None)
    return found if isinstance(found, ClientCertificate) else None


# Reading.


@dataclass(frozen=True, slots=True)
class _Pair:
    """A key, its certificate and what leads from it to an authority."""

    key: Any
    certificate: x509.Certificate
    chain: Sequence[x509.Certificate]
    where: str


def _pair(files: TLSFiles) -> _Pair:
    key = _key_in(files.key or files.certificate)
    found = _certificates_in(files.certificate)
    if files.chain:
        found += _certificates_in(files.chain)
    certificate = next((one for one in found if _public(one) == key.public_key()), None)
    if certificate is None:
        raise BadCertificate(
            f"the private key in {files.key or files.certificate} does not belong to the "
            f"certificate in {files.certificate}"
        )
    chain = [one for one in found if one != certificate]
    return _Pair(key, certificate, chain, files.certificate)


def _pairs_in(folder: str) -> list[_Pair]:
    """Of all keys in a folder's files that have a certificate there."""
    keys: list[tuple[Any, str]] = []
    certificates: list[x509.Certificate] = []
    try:
        paths = sorted(
            os.path.join(root, name)
            for root, _, names in os.walk(folder, onerror=_fail)
            for name in names
            if name.endswith(".pem")
        )
    except OSError as error:
        raise BadCertificate(_unreadable(error)) from None
    if not paths:
        raise BadCertificate(f"No certificate (*.pem) in this folder: {folder}")
    for path in paths:
        content = _content(path)
        if b"PRIVATE KEY-----" in content:
            keys.append((_key(content, path), path))
        if b"BEGIN CERTIFICATE" in content:
            certificates += _certificates(content, path)
    public = {one: _public(one) for one in certificates}
    ours = [key.public_key() for key, _ in keys]
    above = {one.subject: one for one in certificates if public[one] not in ours}
    pairs = []
    for key, path in keys:
        found = [one for one in certificates if public[one] == key.public_key()]
        if found:
            # Of a key that was certified again the old certificate may still be there.
            latest = max(found, key=lambda one: one.not_valid_after_utc)
            pairs.append(_Pair(key, latest, _chain_of(latest, above), path))
    if not pairs:
        raise BadCertificate(f"No private key with its certificate in this folder: {folder}")
    return pairs


def _chain_of(
    certificate: x509.Certificate, above: Mapping[x509.Name, x509.Certificate]
) -> list[x509.Certificate]:
    chain: list[x509.Certificate] = []
    issuer = above.get(certificate.issuer)
    while issuer is not None and issuer not in chain and len(chain) < _LONGEST_CHAIN:
        chain.append(issuer)
        issuer = above.get(issuer.issuer)
    return chain


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadCertificate(_unreadable(error)) from None


def _fail(error: OSError) -> None:
    raise error


def _unreadable(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}"


def _key_in(path: str) -> Any:
    return _key(_content(path), path)


def _key(content: bytes, path: str) -> Any:
    try:
        # Validating an RSA key takes up to 250 ms in which no other thread runs. It is
        # the operator's own, and it is compared with the certificate's.
        return load_pem_private_key(content, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise BadCertificate(
            f"the private key in {path} is encrypted, and nobody can be asked for its "
            "passphrase: write it without one (openssl pkey -in KEY -out NEW)"
        ) from None
    except Exception:  # ValueError, UnsupportedAlgorithm: of another library
        raise BadCertificate(f"expected a private key in PEM format in {path}") from None


def _certificates_in(path: str) -> list[x509.Certificate]:
    return _certificates(_content(path), path)


def _certificates(content: bytes, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise BadCertificate(f"expected a certificate in PEM format in {path}") from None


def _public(certificate: x509.Certificate) -> Any:
    try:
        return certificate.public_key()
    except Exception:  # Of an algorithm that nobody knows: then it is not this key's.
        return None


# Making contexts. See Note [What TLS is like here].


def _context(
    pair: _Pair,
    files: TLSFiles,
    authorities: Sequence[x509.Certificate],
    protocols: Sequence[bytes],
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(_SESSIONS_OF)
    try:
        context.use_certificate(pair.certificate)
        context.use_privatekey(pair.key)
        context.check_privatekey()
        for certificate in pair.chain:
            context.add_extra_chain_cert(certificate)
    except SSL.Error as error:
        raise BadCertificate(
            f"the certificate in {pair.where} cannot be used: {_in_words(error)}"
        ) from None
    if authorities:
        store = context.get_cert_store()
        assert store is not None
        # Whatever is in the file is trusted, also an authority below another one.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for authority in authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
            context.add_client_ca(authority)
        required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if files.client_required else 0
        context.set_verify(SSL.VERIFY_PEER | required)

    def choose(_: SSL.Connection, offered: list[bytes]) -> Any:
        common = (one for one in protocols if one in offered)
        return next(common, SSL.NO_OVERLAPPING_PROTOCOLS)

    context.set_alpn_select_callback(choose)
    return context


def _choose_by_name(
    contexts: Sequence[SSL.Context], certificates: Sequence[ServedCertificate]
) -> None:
    """Have the first context give way to that of the name that a client asks for."""
    by_name: dict[str, SSL.Context] = {}
    for context, certificate in zip(contexts, certificates, strict=True):
        for name in certificate.names:
            by_name.setdefault(name.lower(), context)

    def chosen(connection: SSL.Connection) -> None:
        name = (connection.get_servername() or b"").decode("latin-1").lower()
        wildcard = f"*.{name.partition('.')[2]}"
        context = by_name.get(name) or by_name.get(wildcard)
        if context is not None:
            connection.set_context(context)

    contexts[0].set_tlsext_servername_callback(chosen)


def _in_words(error: SSL.Error) -> str:
    """What OpenSSL says, without the names of its functions."""
    details = error.args[0] if error.args else ()
    words = [detail[2] for detail in details if isinstance(detail, tuple) and detail[2:]]
    return ", ".join(dict.fromkeys(word for word in words if word)) or type(error).__name__


# What is in a certificate.


def _served(certificate: x509.Certificate) -> ServedCertificate:
    alternative = _alternative_names(certificate)
    return ServedCertificate(
        subject=certificate.subject.rfc4514_string(),
        names=tuple(
            str(one.value) for one in alternative if isinstance(one, x509.DNSName | x509.IPAddress)
        ),
        begins=certificate.not_valid_before_utc.timestamp(),
        expires=certificate.not_valid_after_utc.timestamp(),
    )


_KINDS: tuple[tuple[type[x509.GeneralName], str], ...] = (
    (x509.UniformResourceIdentifier, "uri"),
    (x509.DNSName, "dns"),
    (x509.RFC822Name, "email"),
)


def _identity(shown: crypto.X509) -> ClientCertificate:
    """The names that the settings may know a client's certificate by."""
    certificate = shown.to_cryptography()
    alternative = _alternative_names(certificate)
    names = [("sha256", certificate.fingerprint(SHA256()).hex())]
    for kind, label in _KINDS:
        names += [(label, one.value) for one in alternative if isinstance(one, kind)]
    names += [("common_name", value) for value in _common_names(certificate)]
    return ClientCertificate(
        names=tuple(ClientCertificate.name(label, value) for label, value in names),
        expires=certificate.not_valid_after_utc.timestamp(),
    )


def _alternative_names(certificate: x509.Certificate) -> Iterable[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        # None, or none that can be read: OpenSSL is less strict than what reads it here.
        return ()
    return tuple(found.value)


def _common_names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return []
    return [str(one.value) for one in found]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
