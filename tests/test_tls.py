"""
TLS towards clients, load balancers in front, and who a certificate stands for.
"""

from __future__ import annotations

import contextlib
import io
import os
import ssl
import stat
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from typing import Any
from unittest.mock import ANY

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from prometheus_client import CollectorRegistry, generate_latest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase

from txbedrock import config, devcert
from txbedrock.core.addresses import Networks, parse_network
from txbedrock.core.auth import ClientCertificate
from txbedrock.core.grants import Key, Token
from txbedrock.core.permissions import EVERYTHING
from txbedrock.core.proxyheader import (
    MAX_HEADER,
    BadProxyHeader,
    ProxyHeader,
    parse_proxy_header,
)
from txbedrock.errors import ConfigError, KeyBlocked, KeyExpired, UnrecognizedKey
from txbedrock.inbound.haproxy import HEADER_TIMEOUT_S, ProxiedFactory
from txbedrock.inbound.tls import (
    BadCertificate,
    ServerTLS,
    TLSFactory,
    TLSFiles,
    TLSMaterial,
    client_certificate,
    read_tls,
)
from txbedrock.interfaces import InboundRequest
from txbedrock.listeners import BadListener, Listener, Listeners
from txbedrock.storage.directory import KeyRecord
from txbedrock.storage.keys import KeyStore, MasterKey

PEM = serialization.Encoding.PEM
DAY_S = 86400.0
V2 = b"\r\n\r\n\x00\r\nQUIT\n"


def pem_of(key: Any, passphrase: bytes | None = None, old: bool = False) -> bytes:
    """A private key as a file holds it."""
    encryption: Any = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    form = serialization.PrivateFormat
    text: bytes = key.private_bytes(
        PEM, form.TraditionalOpenSSL if old else form.PKCS8, encryption
    )
    return text


class Authority:
    """
    One that issues certificates.

    :param above: the one that has issued its own; None: itself.
    """

    def __init__(self, name: str = "tests", above: Authority | None = None) -> None:
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.above = above
        issuer = above or self
        self.certificate = (
            self._builder(name, self.key.public_key(), issuer, -DAY_S, 100 * DAY_S)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .sign(issuer.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    def _builder(
        self, name: str, key: Any, issuer: Authority, begins: float, ends: float
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        issued_by = x509.NameAttribute(NameOID.COMMON_NAME, issuer.name)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(x509.Name([issued_by]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(seconds=begins))
            .not_valid_after(now + timedelta(seconds=ends))
        )

    def issue(
        self,
        *names: str,
        common_name: str = "",
        key: Any = None,
        begins: float = -DAY_S,
        ends: float = 50 * DAY_S,
        client: bool = False,
    ) -> Issued:
        """
        A certificate.

        :param names: of hosts, addresses, URIs (with ``://``), mail addresses (with ``@``).
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = self._builder(common_name, key.public_key(), self, begins, ends)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if names:
            alternative = x509.SubjectAlternativeName([general_name(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        return Issued(key, builder.sign(self.key, hashes.SHA256()))


def general_name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if "@" in name:
        return x509.RFC822Name(name)
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    return x509.DNSName(name)


class Issued:
    """A certificate and its key."""

    def __init__(self, key: Any, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    @property
    def key_pem(self) -> bytes:
        return pem_of(self.key)

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


class FolderTestCase(SynchronousTestCase):
    """In an empty folder, with an authority."""

    def setUp(self) -> None:
        self.authority = Authority()
        self.folder = os.path.realpath(self.mktemp())
        os.makedirs(self.folder)
        self.logged: list[LogEvent] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def write(self, name: str, *contents: bytes) -> str:
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "wb") as file:
            file.write(b"".join(contents))
        return self.path(name)

    def files(self, issued: Issued, *chain: Authority, **changes: Any) -> TLSFiles:
        """A certificate's files."""
        values = {
            "certificate": self.write("cert.pem", issued.pem, *(one.pem for one in chain)),
            "key": self.write("key.pem", issued.key_pem),
            **changes,
        }
        return TLSFiles(**values)

    def lines(self, level: str = "") -> list[str]:
        """What the gateway has logged."""
        return [
            str(event["log_format"]).format(**event)
            for event in self.logged
            if str(event["log_namespace"]).startswith("txbedrock")
            and (not level or event["log_level"].name == level)
        ]


# The handshake, in memory.


class Handshake:
    """
    What came of one.

    :param more: of the client's, as :meth:`ssl.SSLContext.wrap_bio` has it.
    """

    def __init__(
        self, material: TLSMaterial, context: ssl.SSLContext, name: str = "localhost", **more: Any
    ) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(incoming, outgoing, server_hostname=name, **more)
        self.server = SSL.Connection(material.context)
        self.server.set_accept_state()
        done = [False, False]
        for _ in range(20):
            if not done[0]:
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.client.do_handshake()
                    done[0] = True
            if data := outgoing.read():
                self.server.bio_write(data)
            if not done[1]:
                with contextlib.suppress(SSL.WantReadError):
                    self.server.do_handshake()
                    done[1] = True
            with contextlib.suppress(SSL.WantReadError):
                incoming.write(self.server.bio_read(65536))
        assert all(done)
        # What comes after the handshake: the tickets of TLS 1.3.
        with contextlib.suppress(ssl.SSLWantReadError):
            self.client.read()

    def serial(self) -> int:
        """Of the certificate that the client saw."""
        shown = self.client.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


def client_context(*authorities: Authority, **changes: Any) -> ssl.SSLContext:
    """A client that trusts these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        context.load_verify_locations(cadata=authority.pem.decode())
    for name, value in changes.items():
        setattr(context, name, value)
    return context


class HandshakeTests(FolderTestCase):
    """What clients get."""

    def setUp(self) -> None:
        super().setUp()
        self.issued = self.authority.issue("localhost", "127.0.0.1")

    def shake(self, files: TLSFiles | None = None, **more: Any) -> Handshake:
        material = read_tls(files or self.files(self.issued), (b"h2", b"http/1.1"))
        return Handshake(material, client_context(self.authority), **more)

    def test_versions(self) -> None:
        """TLS 1.3 and 1.2, nothing older; of 1.2 only what HTTP/2 allows."""
        material = read_tls(self.files(self.issued))
        version = ssl.TLSVersion
        for newest, agreed in ((version.TLSv1_3, "TLSv1.3"), (version.TLSv1_2, "TLSv1.2")):
            context = client_context(self.authority, maximum_version=newest)
            shaken = Handshake(material, context)
            self.assertEqual(shaken.client.version(), agreed)
            self.assertIsNone(shaken.client.compression())
        for cipher, good in (
            ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
            ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
            ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
            ("ECDHE-ECDSA-AES256-SHA384", False),
            ("ECDHE-ECDSA-AES128-SHA", False),
        ):
            context = client_context(self.authority, maximum_version=version.TLSv1_2)
            context.set_ciphers(cipher)
            if good:
                self.assertEqual(Handshake(material, context).client.cipher(), (cipher, ANY, ANY))
            else:
                error = self.assertRaises(SSL.Error, Handshake, material, context)
                self.assertIn("no shared cipher", str(error))
        context = client_context(self.authority)
        context.minimum_version = context.maximum_version = version.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        error = self.assertRaises(SSL.Error, Handshake, material, context)
        self.assertIn("unsupported protocol", str(error))

    def test_preference(self) -> None:
        """Which cipher it is, is the server's choice."""
        material = read_tls(self.files(self.issued))
        context = client_context(self.authority, maximum_version=ssl.TLSVersion.TLSv1_2)
        chosen = set()
        for first, second in (("AES128-GCM-SHA256", "AES256-GCM-SHA384"),) * 2:
            for order in ((first, second), (second, first)):
                context.set_ciphers(":".join(f"ECDHE-ECDSA-{one}" for one in order))
                chosen.add(Handshake(material, context).client.cipher())
        self.assertEqual(len(chosen), 1)

    def test_no_renegotiation(self) -> None:
        """A client cannot make the server shake hands again and again."""
        material = read_tls(self.files(self.issued))
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        client, server = SSL.Connection(context), SSL.Connection(material.context)
        client.set_connect_state()
        server.set_accept_state()

        def exchange() -> list[SSL.Error]:
            errors = []
            for _ in range(4):
                for here, there in ((client, server), (server, client)):
                    try:
                        here.do_handshake()
                        here.recv(1)
                    except SSL.WantReadError:
                        pass
                    except SSL.Error as error:
                        errors.append(error)
                    with contextlib.suppress(SSL.WantReadError):
                        there.bio_write(here.bio_read(65536))
            return errors

        self.assertEqual(exchange(), [])
        self.assertTrue(client.renegotiate())
        refused = exchange()
        self.assertIn("no renegotiation", str(refused))
        self.assertEqual(server.total_renegotiations(), 0)

    def test_alpn(self) -> None:
        """What the factory behind it speaks, in its order; nothing in common is no failure."""
        material = read_tls(self.files(self.issued), (b"h2", b"http/1.1"))
        for offered, agreed in (
            (["http/1.1", "h2"], "h2"),
            (["http/1.1"], "http/1.1"),
            (["spdy/1"], None),
            ([], None),
        ):
            context = client_context(self.authority)
            if offered:
                context.set_alpn_protocols(offered)
            shaken = Handshake(material, context)
            self.assertEqual(shaken.client.selected_alpn_protocol(), agreed)

    def test_resumption(self) -> None:
        """A client that comes again need not shake hands in full, in either version."""
        material = read_tls(self.files(self.issued))
        for newest in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context = client_context(self.authority, maximum_version=newest)
            first = Handshake(material, context)
            self.assertFalse(first.client.session_reused)
            again = Handshake(material, context, session=first.client.session)
            self.assertTrue(again.client.session_reused)
            # What was read anew has keys of its own: it shakes hands in full, and works.
            later = read_tls(self.files(self.issued))
            anew = Handshake(later, context, session=first.client.session)
            self.assertFalse(anew.client.session_reused)

    def test_keys(self) -> None:
        """RSA, elliptic curves and Ed25519, in the forms that tools write."""
        edwards = ed25519.Ed25519PrivateKey.generate()
        small = rsa.generate_private_key(65537, 2048)
        curve = ec.generate_private_key(ec.SECP384R1())
        parameters = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"
        for key, content in (
            (small, pem_of(small)),
            (small, pem_of(small, old=True)),
            (curve, pem_of(curve)),
            (curve, parameters + pem_of(curve, old=True)),
            (edwards, pem_of(edwards)),
        ):
            issued = self.authority.issue("localhost", key=key)
            files = self.files(issued, key=self.write("key.pem", content))
            files = TLSFiles(files.certificate, self.write("key.pem", content))
            self.assertEqual(self.shake(files).serial(), issued.certificate.serial_number)

    def test_chains(self) -> None:
        """A client that knows only the root gets what leads there, however the files are."""
        middle = Authority("middle", self.authority)
        low = Authority("low", middle)
        issued = low.issue("localhost")
        everything = self.write("all.pem", issued.key_pem, issued.pem, low.pem, middle.pem)
        for files in (
            self.files(issued, low, middle),
            TLSFiles(everything, everything),
            TLSFiles(everything),
            TLSFiles(
                self.write("leaf.pem", issued.pem),
                self.path("key.pem"),
                self.write("chain.pem", low.pem, middle.pem),
            ),
            # Not as it should be, but clear.
            TLSFiles(
                self.write("turned.pem", middle.pem, low.pem, issued.pem), self.path("key.pem")
            ),
        ):
            self.assertEqual(self.shake(files).serial(), issued.certificate.serial_number)
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.shake(self.files(issued, low))

    def test_folder(self) -> None:
        """Of several certificates in a folder a client gets the one of the name it asks for."""
        middle = Authority("middle", self.authority)
        one, two = (
            self.authority.issue("one.example"),
            middle.issue("two.example", "*.two.example"),
        )
        old = middle.issue("two.example", key=two.key, ends=DAY_S)
        self.write("pems/a-one.pem", one.key_pem, one.pem)
        self.write("pems/b/two.pem", two.key_pem, two.pem)
        self.write("pems/b/old.pem", old.pem)
        self.write("pems/middle.pem", middle.pem)
        self.write("pems/unused.pem", pem_of(ec.generate_private_key(ec.SECP256R1())))
        self.write("pems/README", b"not for this")
        material = read_tls(TLSFiles(folder=self.path("pems")), (b"h2",))
        self.assertEqual(
            [certificate.names for certificate in material.certificates],
            [("one.example",), ("two.example", "*.two.example")],
        )
        for name, issued in (
            ("one.example", one),
            ("two.example", two),
            ("x.two.example", two),
            ("TWO.example", two),
        ):
            context = client_context(self.authority)
            context.set_alpn_protocols(["h2"])
            shaken = Handshake(material, context, name)
            self.assertEqual(shaken.serial(), issued.certificate.serial_number, name)
            self.assertEqual(shaken.client.selected_alpn_protocol(), "h2")
        # Who asks for none, or for another, gets the first, and judges for itself.
        context = client_context(self.authority, check_hostname=False)
        for name in ("three.example", "127.0.0.1"):
            shaken = Handshake(material, context, name)
            self.assertEqual(shaken.serial(), one.certificate.serial_number)
        context = client_context(self.authority)
        first = Handshake(material, context, "two.example")
        again = Handshake(material, context, "two.example", session=first.client.session)
        self.assertTrue(again.client.session_reused)

    def test_description(self) -> None:
        """What is served can be said in a line."""
        issued = self.authority.issue("localhost", "::1", common_name="gateway", ends=DAY_S)
        [certificate] = read_tls(self.files(issued)).certificates
        until = issued.certificate.not_valid_after_utc
        self.assertEqual(
            str(certificate),
            f"CN=gateway for localhost, ::1, valid until {until:%Y-%m-%dT%H:%M:%SZ}",
        )
        self.assertEqual(certificate.expires, until.timestamp())


class BadFileTests(FolderTestCase):
    """Files that cannot be used are told of in a line, which names them."""

    def refused(self, files: TLSFiles) -> str:
        error = self.assertRaises(BadCertificate, read_tls, files)
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_files(self) -> None:
        issued, other = self.authority.issue("localhost"), self.authority.issue("localhost")
        weak = self.authority.issue("localhost", key=rsa.generate_private_key(65537, 1024))
        good = self.files(issued)
        rubbish = self.write("rubbish.pem", b"rubbish\n")
        broken = self.write("broken.pem", issued.pem[:200], b"\n-----END CERTIFICATE-----\n")
        locked = self.write("locked.pem", pem_of(issued.key, b"secret"))
        old = pem_of(rsa.generate_private_key(65537, 2048), b"secret", old=True)
        for files, words in (
            (TLSFiles(good.certificate, self.path("no.pem")), "No such file or directory: /"),
            (TLSFiles(self.path("no.pem"), good.key), "No such file or directory: /"),
            (TLSFiles(good.certificate, self.folder), "Is a directory: /"),
            (TLSFiles(good.certificate, rubbish), "expected a private key in PEM format in /"),
            (TLSFiles(good.certificate), "expected a private key in PEM format in /"),
            (TLSFiles(rubbish, good.key), "expected a certificate in PEM format in /"),
            (TLSFiles(broken, good.key), "expected a certificate in PEM format in /"),
            (TLSFiles(good.key, good.key), "expected a certificate in PEM format in /"),
            (TLSFiles(good.certificate, locked), "is encrypted, and nobody can be asked"),
            (TLSFiles(good.certificate, self.write("x.pem", old)), "is encrypted"),
            (
                TLSFiles(self.write("other.pem", other.pem), good.key),
                f"the private key in {good.key} does not belong to the certificate in /",
            ),
            (
                TLSFiles(self.write("weak.pem", weak.pem, weak.key_pem)),
                "weak.pem cannot be used: ee key too small",
            ),
            (TLSFiles(good.certificate, good.key, rubbish), "expected a certificate in PEM"),
            (
                TLSFiles(good.certificate, good.key, client_ca=rubbish),
                "expected a certificate in PEM format in /",
            ),
            (
                TLSFiles(good.certificate, good.key, client_ca=self.path("no.pem")),
                "No such file or directory: /",
            ),
            (TLSFiles(folder=self.path("nowhere")), "No such file or directory: /"),
            (TLSFiles(folder=os.path.dirname(self.write("a/x"))), "No certificate (*.pem) in"),
            (
                TLSFiles(folder=os.path.dirname(self.write("b/x.pem", issued.pem))),
                "No private key with its certificate in this folder: /",
            ),
            (
                TLSFiles(folder=os.path.dirname(self.write("c/x.pem", b"PRIVATE KEY-----"))),
                "expected a private key in PEM format in /",
            ),
        ):  # fmt: skip
            self.assertIn(words, self.refused(files))


class ClientCertificateTests(FolderTestCase):
    """Certificates of clients."""

    def setUp(self) -> None:
        super().setUp()
        self.clients = Authority("clients")

    def material(self, *trusted: Authority, required: bool = True) -> TLSMaterial:
        ca = self.write("clients.pem", *(one.pem for one in trusted or (self.clients,)))
        issued = self.authority.issue("localhost")
        return read_tls(self.files(issued, client_ca=ca, client_required=required))

    def context(self, issued: Issued | None, *chain: Authority, **more: Any) -> ssl.SSLContext:
        context = client_context(self.authority, **more)
        if issued is not None:
            pems = [one.pem for one in chain]
            path = self.write("client.pem", issued.key_pem, issued.pem, *pems)
            context.load_cert_chain(path)
        return context

    def test_required(self) -> None:
        """Who has none, or one of somebody else's, or one that is over, does not get in."""
        material = self.material()
        good = self.clients.issue("ci.example", client=True)
        Handshake(material, self.context(good))
        for issued, words in (
            (None, "peer did not return a certificate"),
            (Authority("clients").issue("ci.example", client=True), "certificate verify failed"),
            (self.clients.issue("x", client=True, ends=-1), "certificate verify failed"),
            (self.clients.issue("x", client=True, begins=DAY_S), "certificate verify failed"),
            # A server's is no client's.
            (self.clients.issue("x"), "certificate verify failed"),
        ):
            error = self.assertRaises(SSL.Error, Handshake, material, self.context(issued))
            self.assertIn(words, str(error))

    def test_optional(self) -> None:
        """Who has none gets in; who has a wrong one still does not."""
        material = self.material(required=False)
        Handshake(material, self.context(None))
        Handshake(material, self.context(self.clients.issue("x", client=True)))
        wrong = self.context(Authority("clients").issue("x", client=True))
        self.assertRaises(SSL.Error, Handshake, material, wrong)

    def test_not_asked_for(self) -> None:
        """Without clientCA nobody is asked, and what a client would show counts for nothing."""
        material = read_tls(self.files(self.authority.issue("localhost")))
        shaken = Handshake(material, self.context(self.clients.issue("x", client=True)))
        self.assertIsNone(shaken.server.get_peer_certificate())

    def test_below_another(self) -> None:
        """The file may hold an authority that is below another one, and only that."""
        middle = Authority("middle", self.clients)
        material = self.material(middle)
        Handshake(material, self.context(middle.issue("x", client=True)))
        beside = self.context(self.clients.issue("x", client=True))
        self.assertRaises(SSL.Error, Handshake, material, beside)
        # With the root it is the client that shows what lies between.
        material = self.material(self.clients)
        Handshake(material, self.context(middle.issue("x", client=True), middle))

    def identity(self, shaken: Handshake) -> ClientCertificate | None:
        """What the transport of a connection says."""
        factory = TLSFactory(ServerTLS(self.material()), False, Factory(), clock=Clock())
        transport = factory.protocol(factory, Protocol())
        transport._tlsConnection = shaken.server
        return client_certificate(transport)

    def test_names(self) -> None:
        """All names in it, told apart by kind, the best first; the same when resumed."""
        issued = self.clients.issue(
            "CI.example", "spiffe://example/ci", "Me@Example.com", "10.0.0.1",
            common_name="dns:ci.example", client=True,
        )  # fmt: skip
        material = self.material()
        for newest in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context = self.context(issued, maximum_version=newest)
            first = Handshake(material, context)
            again = Handshake(material, context, session=first.client.session)
            self.assertTrue(again.client.session_reused)
            for shaken in (first, again):
                self.assertEqual(
                    self.identity(shaken),
                    ClientCertificate(
                        (
                            f"sha256:{issued.fingerprint}",
                            "uri:spiffe://example/ci",
                            "dns:ci.example",
                            "email:me@example.com",
                            "common_name:dns:ci.example",
                        ),
                        issued.certificate.not_valid_after_utc.timestamp(),
                    ),
                )

    def test_none(self) -> None:
        """Plain connections have none, nor have clients that show none."""
        self.assertIsNone(client_certificate(StringTransport()))
        self.assertIsNone(client_certificate(None))
        shaken = Handshake(self.material(required=False), self.context(None))
        self.assertIsNone(self.identity(shaken))


# Endpoint strings.


class ListenerTests(FolderTestCase):
    """What may follow --listen."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def test_tls(self) -> None:
        """Every way to say TLS, and what Twisted is left with."""
        here = self.folder
        cert, key = f"{here}/cert.pem", f"{here}/key.pem"
        both = TLSFiles(cert, key)
        for text, files, base in (
            ("tls:4443:cert=cert.pem:key=key.pem", both, "tcp:4443"),
            ("tls:cert=cert.pem:key=key.pem", both, "tcp:443"),
            ("tls:port=1:cert=cert.pem:key=key.pem", both, "tcp:1"),
            ("ssl:4443:privateKey=key.pem:certKey=cert.pem", both, "tcp:4443"),
            ("ssl:4443:key=key.pem:cert=cert.pem:backlog=9", both, "tcp:4443:backlog=9"),
            ("tls:4443:cert=cert.pem", TLSFiles(cert, cert), "tcp:4443"),
            ("tls:4443:key=key.pem", TLSFiles(key, key), "tcp:4443"),
            ("ssl:4443", TLSFiles(f"{here}/server.pem", f"{here}/server.pem"), "tcp:4443"),
            ("ssl:4443:certKey=cert.pem", TLSFiles(cert, f"{here}/server.pem"), "tcp:4443"),
            (
                "ssl:4443:privateKey=key.pem:certKey=cert.pem:extraCertChain=x.pem",
                TLSFiles(cert, key, f"{here}/x.pem"),
                "tcp:4443",
            ),
            (
                "tls:4443:cert=cert.pem:key=key.pem:interface=127.0.0.1",
                both,
                r"tcp:4443:interface=127.0.0.1",
            ),
            (
                r"tls:4443:cert=cert.pem:key=key.pem:interface=\:\:1",
                both,
                r"tcp6:4443:interface=\:\:1",
            ),
            (
                r"tls:4443:cert=/a\:b/c.pem",
                TLSFiles("/a:b/c.pem", "/a:b/c.pem"),
                "tcp:4443",
            ),
            (
                "tls:pems:port=4443",
                TLSFiles(folder=f"{here}/pems"),
                r"tcp6:4443:interface=\:\:",
            ),
            (
                "tls:path=pems:port=4443:interface=127.0.0.1",
                TLSFiles(folder=f"{here}/pems"),
                "tcp:4443:interface=127.0.0.1",
            ),
            (
                "tls:4443:cert=cert.pem:key=key.pem:clientCA=ca.pem",
                TLSFiles(cert, key, client_ca=f"{here}/ca.pem"),
                "tcp:4443",
            ),
            (
                "tls:pems:port=1:clientCA=ca.pem:clientAuth=optional:interface=",
                TLSFiles(folder=f"{here}/pems", client_ca=f"{here}/ca.pem", client_required=False),
                "tcp:1",
            ),
        ):
            listener = Listener.parse(text)
            if "backlog" not in text:
                base += ":backlog=1024"
            self.assertEqual((listener.tls, listener.base), (files, base), text)
            self.assertFalse(listener.proxied)
            again = Listener.parse(listener.description)
            self.assertEqual((again.tls, again.base), (files, base), listener.description)
            for prefix in ("haproxy", "proxy"):
                proxied = Listener.parse(f"{prefix}:{text}")
                self.assertEqual((proxied.tls, proxied.base), (files, base))
                self.assertEqual(proxied.description, f"{prefix}:{listener.description}")
                self.assertTrue(proxied.proxied)

    def test_backlog(self) -> None:
        """
        Clients that come all at once find room, where Twisted's 50 let them wait for a
        second; who says another number gets that.
        """
        for text, base in (
            ("tcp:4000", "tcp:4000:backlog=1024"),
            ("tcp:4000:interface=127.0.0.1", "tcp:4000:interface=127.0.0.1:backlog=1024"),
            ("tcp6:4000", "tcp6:4000:backlog=1024"),
            ("haproxy:tcp:4000", "tcp:4000:backlog=1024"),
            ("tcp:4000:backlog=7", "tcp:4000:backlog=7"),
            ("tcp:4000:127.0.0.1:7", "tcp:4000:127.0.0.1:7"),
            ("unix:/s:mode=660", "unix:/s:mode=660:backlog=1024"),
            ("unix:/s:660:7", "unix:/s:660:7"),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
        ):
            listener = Listener.parse(text)
            self.assertEqual(listener.base, base)
            self.assertNotIn("1024", listener.description)
            if not text.startswith("systemd"):
                listener.check()
        reactor = FakeReactor(0.0)
        listeners = Listeners(reactor, trusted_proxies=(), wall_clock=lambda: 0.0)
        for text, backlog in (("tcp:1", 1024), ("haproxy:tcp:1", 1024), ("tcp:1::7", 7)):
            self.successResultOf(listeners.endpoint(text).listen(Factory()))
            self.assertEqual(reactor.backlog, backlog)

    def test_absolute(self) -> None:
        """Paths are made absolute, also below a folder whose name has a colon."""
        os.makedirs("a:b")
        os.chdir("a:b")
        listener = Listener.parse("tls:4443:cert=x.pem:clientCA=../ca.pem")
        here = self.folder
        self.assertEqual(
            listener.description, rf"tls:4443:cert={here}/a\:b/x.pem:clientCA={here}/ca.pem"
        )
        self.assertEqual(Listener.parse(listener.description).tls, listener.tls)
        self.assertEqual(Listener.parse("unix:sock").base, rf"unix:{here}/a\:b/sock:backlog=1024")

    def test_without_effect(self) -> None:
        """Twisted's settings of TLS itself are taken, and told of."""
        text = "ssl:1:privateKey=x:sslmethod=TLS_METHOD:dhParameters=dh.pem"
        self.assertEqual(Listener.parse(text).ignored, ("sslmethod", "dhParameters"))

    def test_local(self) -> None:
        """Whether only this machine can reach it."""
        for text, local in (
            ("tls:4443:cert=x", False),
            ("tls:4443:cert=x:interface=127.0.0.1", True),
            (r"tls:4443:cert=x:interface=\:\:1", True),
            ("tls:pems:port=1", False),
            ("haproxy:tls:4443:cert=x:interface=localhost", True),
            ("haproxy:tls:4443:cert=x", False),
            ("proxy:unix:x", True),
            ("systemd:INET:0", False),
        ):
            self.assertIs(Listener.parse(text).local, local, text)

    def test_bad(self) -> None:
        """What is wrong is said."""
        for text, words in (
            ("tls:4443", "expected tls:PORT:cert=FILE:key=FILE"),
            ("tls", "expected tls:PORT:cert=FILE:key=FILE"),
            ("tls:port=4443", "expected tls:PORT:cert=FILE:key=FILE"),
            ("tls:http:cert=x", "port must be a number"),
            ("tls:99999:cert=x", "port must be a number"),
            ("ssl:cert=x", "port must be a number"),
            ("tls:1:2:cert=x", "what is '2'?"),
            ("tls:1:cret=x:cert=x", "unknown setting 'cret' of tls:"),
            ("tls:1:cert=x:clientAuth=optional", "clientAuth needs clientCA"),
            ("tls:1:cert=x:clientCA=y:clientAuth=maybe", "must be required or optional"),
            ("haproxy:proxy:tcp:1", "expected proxy: once"),
        ):
            error = self.assertRaises(BadListener, Listener.parse, text)
            self.assertIn(words, str(error))


# Certificates over time.


class Port:
    """One that listens."""

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 4443)


class FakeReactor(Clock):
    """Listens without a socket, and has threads that run at once, or when they are let."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.advance(now)
        self.factory: Any = None
        self.held: list[Any] | None = None

    def listenTCP(self, port: int, factory: Any, *, backlog: int, interface: str) -> Port:
        self.factory, self.backlog = factory, backlog
        return Port()

    def getThreadPool(self) -> ThreadPool:
        return self  # type: ignore[return-value]

    def callInThreadWithCallback(self, on_result: Any, work: Any) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception:
                on_result(False, Failure())
            else:
                on_result(True, result)

        if self.held is None:
            run()
        else:
            self.held.append(run)

    def callFromThread(self, call: Any, *arguments: Any) -> None:
        call(*arguments)


class ReloadTests(FolderTestCase):
    """Certificates are replaced while connections go on."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = FakeReactor(datetime.now(UTC).timestamp())

    def start(self, issued: Issued, text: str = "") -> Listeners:
        self.files(issued)
        text = text or f"tls:4443:cert={self.path('cert.pem')}:key={self.path('key.pem')}"
        listeners = Listeners(
            self.reactor,
            trusted_proxies=[parse_network("10.0.0.0/8")],
            wall_clock=self.reactor.seconds,
        )
        self.successResultOf(listeners.endpoint(text).listen(Factory()))
        listeners.startService()
        self.addCleanup(listeners.stopService)
        return listeners

    def seen(self) -> int:
        """The serial number that a new client sees."""
        return Handshake(self.served(), client_context(self.authority)).serial()

    def served(self) -> TLSMaterial:
        """What the factory that listens makes connections of."""
        connection = self.reactor.factory._creatorCallable(Protocol())
        return TLSMaterial((), connection.get_context())

    def test_reload(self) -> None:
        """New connections get the new certificate, those that are open keep theirs."""
        old, new = self.authority.issue("localhost"), self.authority.issue("new", "localhost")
        self.listeners = self.start(old)
        self.assertEqual(len(self.lines()), 1)
        before = Handshake(self.served(), client_context(self.authority))
        self.files(new)
        self.assertEqual(self.seen(), old.certificate.serial_number)
        self.listeners.reload()
        self.assertEqual(self.seen(), new.certificate.serial_number)
        self.assertEqual(
            [line.split(", valid")[0] for line in self.lines()],
            [
                "127.0.0.1:4443: serving a certificate for localhost",
                "127.0.0.1:4443: serving a certificate for new, localhost",
            ],
        )
        self.assertEqual(before.server.send(b"goes on"), 7)

    def test_bad_file(self) -> None:
        """What cannot be used leaves what is served, with one line that says why."""
        old, other = self.authority.issue("localhost"), self.authority.issue("localhost")
        self.listeners = self.start(old)
        for name, content, words in (
            ("cert.pem", other.pem, "does not belong to the certificate in "),
            ("cert.pem", b"", "expected a certificate in PEM format in "),
            ("key.pem", b"rubbish", "expected a private key in PEM format in "),
        ):
            self.logged.clear()
            self.files(old)
            self.write(name, content)
            self.listeners.reload()
            [line] = self.lines()
            self.assertEqual(self.lines("error"), [line])
            self.assertTrue(line.startswith("127.0.0.1:4443: the certificate stays as it is: "))
            self.assertIn(words, line)
            self.assertEqual(self.seen(), old.certificate.serial_number)

    def test_in_a_thread(self) -> None:
        """Files are read in a thread; who asks meanwhile has them read once more."""
        self.listeners = self.start(self.authority.issue("localhost"))
        self.reactor.held = held = []
        before = self.served()
        for _ in range(5):
            self.listeners.reload()
        self.assertEqual(len(held), 1)
        self.assertIs(self.served().context, before.context)
        new = self.authority.issue("localhost")
        self.files(new)
        held.pop()()
        self.assertEqual(len(held), 1)
        held.pop()()
        self.assertEqual(held, [])
        self.assertEqual(self.seen(), new.certificate.serial_number)

    def test_expiry(self) -> None:
        """Two weeks before it expires there is a warning a day, and after it, too."""
        self.listeners = self.start(self.authority.issue("localhost", ends=16.5 * DAY_S))
        said = []
        for _ in range(18):
            said.append(" ".join(self.lines("warn")))
            self.logged.clear()
            self.reactor.advance(DAY_S)
        self.assertEqual(said[:3], [""] * 3)
        for day, line in enumerate(said[3:17]):
            self.assertIn(f"127.0.0.1:4443: the certificate expires within {14 - day} days", line)
            self.assertEqual(line.count("expires"), 1)
        self.assertIn("has expired: clients refuse it (a certificate for localhost, ", said[17])
        self.files(self.authority.issue("localhost", ends=60 * DAY_S))
        self.logged.clear()
        self.listeners.reload()
        self.assertEqual(self.lines("warn"), [])

    def test_expired_at_start(self) -> None:
        """An expired certificate is served, with a warning; so is one of tomorrow."""
        for changes, words in (
            ({"ends": -1.0}, "has expired"),
            ({"begins": DAY_S}, "is not valid yet"),
        ):
            self.logged.clear()
            self.listeners = self.start(self.authority.issue("localhost", **changes))
            [line] = self.lines("warn")
            self.assertIn(words, line)

    def test_metric(self) -> None:
        """Monitoring learns when the certificate expires; of several, the first."""
        first = self.authority.issue("one", ends=20 * DAY_S)
        second = self.authority.issue("two", ends=10 * DAY_S)
        for name, issued in (("one", first), ("two", second)):
            self.write(f"pems/{name}.pem", issued.key_pem, issued.pem)
        listeners = self.listeners = self.start(first, f"tls:{self.path('pems')}:port=4443")
        registry = CollectorRegistry(auto_describe=False)

        class Collected:
            def collect(self) -> Any:
                return listeners.metrics()

        registry.register(Collected())  # type: ignore[arg-type]
        text = generate_latest(registry).decode()
        [line] = [line for line in text.splitlines() if line[0] != "#"]
        name, value = line.split(" ")
        self.assertEqual(
            name,
            'txbedrock_certificate_expiry_timestamp_seconds{listener="127.0.0.1:4443"}',
        )
        self.assertEqual(float(value), second.certificate.not_valid_after_utc.timestamp())
        self.listeners.stopService()
        self.assertEqual(list(listeners.metrics()), [])
        self.listeners.startService()

    def test_plain(self) -> None:
        """A listener without TLS has nothing of it."""
        listeners = self.start(self.authority.issue("localhost"), "tcp:4000")
        self.assertEqual((self.lines(), list(listeners.metrics())), ([], []))
        listeners.reload()
        self.assertEqual(self.lines(), [])

    def test_nobody_trusted(self) -> None:
        """A listener for load balancers that trusts none is told of at the start."""
        listeners = Listeners(self.reactor, trusted_proxies=(), wall_clock=lambda: 0.0)
        self.successResultOf(listeners.endpoint("haproxy:tcp:4000").listen(Factory()))
        listeners.startService()
        self.addCleanup(listeners.stopService)
        [line] = self.lines("warn")
        self.assertIn("127.0.0.1:4443: general_settings.trusted_proxies is empty", line)


# PROXY headers.


def v2(
    family: int, block: bytes, command: int = 0x21, more: bytes = b"", size: int | None = None
) -> bytes:
    """A header of version 2."""
    length = len(block + more) if size is None else size
    return V2 + bytes((command, family)) + length.to_bytes(2, "big") + block + more


IPV4 = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + (1234).to_bytes(2, "big") + (443).to_bytes(2, "big")
IPV6 = (
    ip_address("2001:db8::1").packed
    + ip_address("2001:db8::2").packed
    + (1234).to_bytes(2, "big")
    + (443).to_bytes(2, "big")
)
GOOD = (
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n", ("192.0.2.1", 1234), ("192.0.2.2", 443)),
    (
        b"PROXY TCP6 2001:db8:0::1 2001:db8::2 1234 443\r\n",
        ("2001:db8::1", 1234),
        ("2001:db8::2", 443),
    ),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n", None, None),
    (v2(0x11, IPV4), ("192.0.2.1", 1234), ("192.0.2.2", 443)),
    (v2(0x11, IPV4, more=bytes(500)), ("192.0.2.1", 1234), ("192.0.2.2", 443)),
    (v2(0x21, IPV6), ("2001:db8::1", 1234), ("2001:db8::2", 443)),
    (v2(0x00, b""), None, None),
    (v2(0x00, IPV4, command=0x20), None, None),
    (v2(0x11, IPV4, command=0x20), None, None),
)
BAD = (
    (b"GET / HTTP/1.1\r\n\r\n", "there is none"),
    (b"\x16\x03\x01\x00", "there is none"),
    (b"PROXY  TCP4 192.0.2.1 192.0.2.2 1234 443\r\n", "cannot be read"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234\r\n", "cannot be read"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443 1\r\n", "cannot be read"),
    (b"PROXY UDP4 192.0.2.1 192.0.2.2 1234 443\r\n", "cannot be read"),
    (b"PROXY TCP4 192.0.2.256 192.0.2.2 1234 443\r\n", "an address that is none"),
    (b"PROXY TCP4 2001:db8::1 2001:db8::2 1234 443\r\n", "an address that is none"),
    (b"PROXY TCP6 192.0.2.1 192.0.2.2 1234 443\r\n", "an address that is none"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n", "a port that is none"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n", "a port that is none"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 \xb2 443\r\n", "a port that is none"),
    (b"PROXY " + b"x" * 101, "does not end"),
    (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "does not end"),
    (v2(0x11, IPV4, command=0x31), "unknown version"),
    (v2(0x11, IPV4, command=0x22), "unknown version"),
    (v2(0x12, IPV4), "something else than TCP"),
    (v2(0x31, bytes(216)), "something else than TCP"),
    (v2(0x11, IPV4[:11]), "too short"),
    (v2(0x21, IPV4), "too short"),
    (v2(0x11, IPV4, size=MAX_HEADER), "longer than"),
)


class ProxyHeaderTests(SynchronousTestCase):
    """The header itself."""

    def test_good(self) -> None:
        """Both versions, whole only when they are, however much follows."""
        for data, source, destination in GOOD:
            expected = ProxyHeader(source, destination, len(data))
            self.assertEqual(parse_proxy_header(data), expected)
            self.assertEqual(parse_proxy_header(data + b"\x16\x03PROXY \r\n"), expected)
            for end in range(len(data)):
                self.assertIsNone(parse_proxy_header(data[:end]), data[:end])

    def test_bad(self) -> None:
        """Everything else is refused, with what is wrong."""
        for data, words in BAD:
            error = self.assertRaises(BadProxyHeader, parse_proxy_header, data)
            self.assertIn(words, str(error))

    @settings(deadline=None, max_examples=300)
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=200).map(lambda rest: b"PROXY " + rest),
            st.binary(max_size=200).map(lambda rest: V2 + rest),
            st.binary(max_size=200).map(lambda rest: V2 + b"\x21\x11" + rest),
            st.builds(bytes.__add__, st.sampled_from([one[0] for one in GOOD]), st.binary()),
        ),
        st.binary(max_size=20),
    )
    def test_anything(self, data: bytes, more: bytes) -> None:
        """Nothing breaks it, and more data never changes what was found."""

        def found(data: bytes) -> ProxyHeader | str | None:
            try:
                return parse_proxy_header(data)
            except BadProxyHeader:
                return "bad"

        first = found(data)
        if first is not None:
            self.assertEqual(found(data + more), first)
        if isinstance(first, ProxyHeader):
            self.assertLessEqual(first.length, len(data))


class Transport(StringTransport):
    """Knows whether it was cut off."""

    aborting = False

    def abortConnection(self) -> None:
        self.aborting = True


class Carried(Protocol):
    """What is behind the header."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class Carrier(Factory):
    """Builds them, and knows for whom."""

    def __init__(self) -> None:
        self.built: list[tuple[Any, Carried]] = []
        self.full = False

    def buildProtocol(self, addr: Any) -> Carried | None:
        if self.full:
            return None
        protocol = Carried()
        self.built.append((addr, protocol))
        return protocol


PROXY = IPv4Address("TCP", "10.1.1.1", 5555)


class ProxiedTests(FolderTestCase):
    """Who is believed, and what becomes of a connection."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.carrier = Carrier()
        trusted = Networks([parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")])
        self.factory = ProxiedFactory(self.carrier, trusted, self.clock)
        self.factory.name = "here"

    def connect(self, peer: Any = PROXY) -> tuple[Any, Transport]:
        transport = Transport(peerAddress=peer)
        protocol = self.factory.buildProtocol(peer)
        assert protocol is not None
        protocol.makeConnection(transport)
        return protocol, transport

    def test_carries(self) -> None:
        """From its first moment on a connection is its client's."""
        for data, source, destination in GOOD:
            for size in (1, 7, len(data) + 4):
                protocol, transport = self.connect()
                whole = data + b"more"
                for start in range(0, len(whole), size):
                    protocol.dataReceived(whole[start : start + size])
                addr, carried = self.carrier.built.pop()
                self.assertEqual(carried.received, b"more")
                peer, host = carried.transport.getPeer(), carried.transport.getHost()
                self.assertEqual(addr, peer)
                if source is None:
                    self.assertEqual((peer, host), (PROXY, transport.getHost()))
                else:
                    kind = IPv6Address if ":" in source[0] else IPv4Address
                    self.assertEqual(peer, kind("TCP", *source))
                    self.assertEqual(host, kind("TCP", *destination))
                carried.transport.write(b"answer")
                self.assertEqual(transport.value(), b"answer")
                protocol.dataReceived(b", and more")
                self.assertEqual(carried.received, b"more, and more")
                protocol.connectionLost(Failure(connectionDone.value))
                self.assertIsNotNone(carried.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.lines(), [])

    def test_nothing_before(self) -> None:
        """As long as the header is not whole there is nothing behind it."""
        protocol, transport = self.connect()
        protocol.dataReceived(GOOD[0][0][:-1])
        self.assertEqual(self.carrier.built, [])
        protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual((self.carrier.built, self.clock.getDelayedCalls()), ([], []))
        self.assertFalse(transport.disconnected)

    def test_untrusted(self) -> None:
        """Whoever is not trusted is not even read."""
        for peer, believed in (
            (IPv4Address("TCP", "10.9.9.9", 1), True),
            (IPv4Address("TCP", "192.0.2.1", 1), False),
            (IPv4Address("TCP", "127.0.0.1", 1), False),
            (IPv6Address("TCP", "::ffff:10.9.9.9", 1), True),
            (IPv6Address("TCP", "2001:db8::9", 1), True),
            (IPv6Address("TCP", "2001:db9::9", 1), False),
            (UNIXAddress(None), True),
        ):
            self.logged.clear()
            built = self.factory.buildProtocol(peer)
            self.assertIs(built is not None, believed, peer)
            if built is not None:
                built._timer.cancel()
                self.assertEqual(self.lines(), [])
            else:
                self.assertEqual(
                    self.lines("info"),
                    [
                        f"{peer.host} refused at here: it is not one of "
                        "general_settings.trusted_proxies"
                    ],
                )

    def test_malformed(self) -> None:
        """What is no header closes the connection, with a line and nothing behind it."""
        for data, words in BAD:
            self.logged.clear()
            protocol, transport = self.connect()
            protocol.dataReceived(data)
            self.assertTrue(transport.aborting)
            protocol.dataReceived(GOOD[0][0])
            [line] = self.lines()
            self.assertTrue(line.startswith("10.1.1.1 refused at here: a PROXY header is "))
            self.assertIn(words, line)
            protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual((self.carrier.built, self.clock.getDelayedCalls()), ([], []))

    def test_slow(self) -> None:
        """A header that does not come in time closes the connection."""
        for data in (b"", GOOD[0][0][:10], V2):
            self.logged.clear()
            protocol, transport = self.connect()
            protocol.dataReceived(data)
            self.clock.advance(HEADER_TIMEOUT_S - 0.1)
            self.assertFalse(transport.aborting)
            self.clock.advance(0.2)
            self.assertTrue(transport.aborting)
            self.assertIn("did not come within 5 s", self.lines()[0])
            protocol.connectionLost(Failure(connectionDone.value))
        # One that has come may be silent for as long as what is behind it allows.
        protocol, transport = self.connect()
        protocol.dataReceived(GOOD[0][0])
        self.clock.advance(3600)
        self.assertFalse(transport.aborting)

    def test_full(self) -> None:
        """When there is no room behind it, the connection is closed."""
        self.carrier.full = True
        protocol, transport = self.connect()
        protocol.dataReceived(GOOD[0][0] + b"more")
        self.assertTrue(transport.aborting)
        protocol.connectionLost(Failure(connectionDone.value))

    def test_stop(self) -> None:
        """When the port closes, who has not said for whom it comes is let go."""
        self.factory.doStart()
        waiting, first = self.connect()
        carrying, second = self.connect()
        carrying.dataReceived(GOOD[0][0])
        self.factory.doStop()
        self.assertEqual((first.aborting, second.aborting), (True, False))
        for protocol in (waiting, carrying):
            protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual(self.clock.getDelayedCalls(), [])


# Who a certificate stands for.

CI = sha256(b"sk-planted-ci").hexdigest()
BOB = sha256(b"sk-planted-bob").hexdigest()


class SettingsTests(FolderTestCase):
    """``client_certificates``."""

    def load(self, entries: str) -> config.Settings:
        path = self.write(
            "config.yaml",
            (
                "general_settings:\n"
                f"  virtual_keys: [{{key_hash: {CI}, key_alias: ci}},"
                f" {{key_hash: {BOB}, key_alias: bob}}]\n"
                f"  client_certificates: {entries}\n"
            ).encode(),
        )
        return config.load(path, {"AWS_REGION_NAME": "us-east-1"})

    def test_names(self) -> None:
        """Each kind of name, written as people do."""
        found = self.load(
            "[{dns: CI.example.com, key_alias: ci}, {uri: 'spiffe://Example/CI', key_alias: ci},"
            " {email: Bob@Example.com, key_alias: bob}, {common_name: Bob, key_alias: bob},"
            f" {{sha256: '{'AB:' * 31}AB', key_alias: bob}}]"
        ).access.client_certificates
        self.assertEqual(
            found,
            {
                "dns:ci.example.com": CI,
                "uri:spiffe://Example/CI": CI,
                "email:bob@example.com": BOB,
                "common_name:Bob": BOB,
                f"sha256:{'ab' * 32}": BOB,
            },
        )

    def test_problems(self) -> None:
        """What is wrong is said with its place."""
        for entries, problem in (
            ("[{dns: x, key_alias: nobody}]", "[0].key_alias: found an alias that none of"),
            ("[{dns: x}]", "[0].key_alias: found nothing, expected the key_alias of"),
            ("[{key_alias: ci}]", "[0].key_alias: found no names of a certificate beside it"),
            ("[{dns: x, uri: y, key_alias: ci}]", "[0].key_alias: found 2 names"),
            ("[{sha256: abc, key_alias: ci}]", "[0].sha256: found 'abc', expected the"),
            (
                "[{dns: x, key_alias: ci}, {dns: X, key_alias: bob}]",
                "[1].dns: found a name that is there already",
            ),
            ("{dns: x}", ": found a mapping, expected a list"),
        ):
            error = self.assertRaises(ConfigError, self.load, entries)
            [found] = error.problems
            self.assertIn(f":3: general_settings.client_certificates{problem}", found)


class OneDirectory:
    """A directory with the keys of the configuration."""

    def __init__(self, **keys: Key) -> None:
        self.keys = keys

    def subscribe(self, listener: Any) -> None:
        pass

    async def records(self, names: Any) -> dict[str, KeyRecord]:
        return {
            name: KeyRecord(key, key.tokens[0], None, None, None, {})
            for name in names
            for key in self.keys.values()
            if key.id == name
        }


class IdentityTests(SynchronousTestCase):
    """A certificate in place of a key."""

    def setUp(self) -> None:
        self.now = 1000.0

        def key(hash: str, alias: str, **changes: Any) -> Key:
            return Key(id=hash, tokens=(Token(hash=hash),), alias=alias, **changes)

        self.store = KeyStore(
            MasterKey("sk-planted-master"),
            OneDirectory(  # type: ignore[arg-type]
                ci=key(CI, "ci"),
                bob=key(BOB, "bob", blocked=True),
                old=key("ef" * 32, "old", expires_us=999_000_000),
            ),
            None,  # type: ignore[arg-type]
            salt=b"",
            access=lambda *_, **__: EVERYTHING,
            reactor=Clock(),
            wall_clock=lambda: self.now,
            certificates={"dns:ci": CI, "common_name:bob": BOB, "uri:x://old": "ef" * 32,
                          "dns:gone": "00" * 32},
        )  # fmt: skip

    def ask(
        self, *names: str, expires: float = 2000.0, key: str = "", query: bytes | None = None
    ) -> Any:
        headers = [(b"Authorization", b"Bearer " + key.encode())] if key else []
        request = InboundRequest(
            id="r",
            method=b"GET",
            raw_path=b"/",
            raw_query=query,
            headers=headers,
            body=None,  # type: ignore[arg-type]
            peer="127.0.0.1",
            received=self.now,
            certificate=ClientCertificate(names, expires) if names else None,
        )
        return Deferred.fromCoroutine(self.store.principal(request))

    def test_stands_for(self) -> None:
        """Who presents a certificate and no key is whom the settings say."""
        for names in (("dns:ci",), ("sha256:00", "uri:x", "dns:ci", "common_name:bob")):
            principal = self.successResultOf(self.ask(*names))
            self.assertEqual((principal.alias, principal.key_hash), ("ci", CI))

    def test_key_wins(self) -> None:
        """A key that is presented counts, be it better, worse or wrong."""
        principal = self.successResultOf(self.ask("dns:ci", key="sk-planted-master"))
        self.assertEqual(principal.alias, "master_key")
        self.failureResultOf(self.ask("dns:ci", key="sk-planted-wrong"), UnrecognizedKey)

    def test_refused(self) -> None:
        """What is against the key is against the certificate."""
        failure = self.failureResultOf(self.ask("common_name:bob"), KeyBlocked)
        self.assertIn("blocked", str(failure.value))
        self.failureResultOf(self.ask("uri:x://old"), KeyExpired)

    def test_unknown(self) -> None:
        """A certificate that stands for nobody, and none at all, need a key."""
        for names in (("common_name:ci", "uri:ci"), ("dns:gone",)):
            failure = self.failureResultOf(self.ask(*names), UnrecognizedKey)
            self.assertIn("stands for no key", failure.value.message)
            self.assertEqual(failure.value.detail, f"certificate {names[0]}")
        failure = self.failureResultOf(self.ask(), UnrecognizedKey)
        self.assertIn("the request has none", failure.value.message)

    def test_expired(self) -> None:
        """A connection may outlive its certificate, which then stands for nobody."""
        self.successResultOf(self.ask("dns:ci", expires=1000.1))
        failure = self.failureResultOf(self.ask("dns:ci", expires=1000.0), KeyExpired)
        self.assertIn("client certificate expired at 1970-01-01T00:16:40", failure.value.message)


class DevCertificateTests(FolderTestCase):
    """``python -m txbedrock.devcert``."""

    def run_main(self, *arguments: str) -> str:
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        self.assertEqual(devcert.main(["--folder", self.path("tls"), *arguments]), 0)
        return out.getvalue()

    def test_works(self) -> None:
        """A strict client that trusts the authority accepts the certificate."""
        made = devcert.make(self.path("tls"), ["gateway.example"])
        material = read_tls(TLSFiles(made.certificate, made.key))
        context = ssl.create_default_context(cafile=made.ca)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        for name in ("localhost", "127.0.0.1", "::1", "gateway.example"):
            Handshake(material, context, name)
        with self.assertRaises(ssl.SSLCertVerificationError):
            Handshake(material, context, "other.example")
        left = made.expires - datetime.now(UTC)
        self.assertTrue(timedelta(days=360) < left < timedelta(days=366))

    def test_again(self) -> None:
        """Run again it renews the certificate and keeps the authority."""
        first = devcert.make(self.path("tls"))
        with open(first.ca, "rb") as file, open(first.certificate, "rb") as other:
            ca, certificate = file.read(), other.read()
        again = devcert.make(self.path("tls"))
        with open(again.ca, "rb") as file, open(again.certificate, "rb") as other:
            self.assertEqual(file.read(), ca)
            self.assertNotEqual(other.read(), certificate)
        self.assertEqual((first.new_ca, again.new_ca), (True, False))
        Handshake(
            read_tls(TLSFiles(again.certificate, again.key)),
            ssl.create_default_context(cafile=first.ca),
        )

    def test_files(self) -> None:
        """Only its owner can read a key, and git sees nothing of it."""
        devcert.make(self.path("tls"))
        for name in ("key.pem", "ca-key.pem"):
            mode = stat.S_IMODE(os.stat(self.path(f"tls/{name}")).st_mode)
            self.assertEqual(mode, 0o600, name)
        self.assertEqual(
            sorted(os.listdir(self.path("tls"))),
            [".gitignore", "ca-key.pem", "ca.pem", "cert.pem", "key.pem"],
        )
        with open(self.path("tls/.gitignore")) as file:
            self.assertEqual(file.read(), "*\n")

    def test_next_lines(self) -> None:
        """It prints what to do next: an endpoint string that works, and the authority."""
        said = self.run_main()
        [line] = [line for line in said.splitlines() if "--listen" in line]
        listener = Listener.parse(line.rpartition(" ")[2])
        listener.check()
        for name in ("AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"):
            self.assertIn(f"export {name}={self.path('tls/ca.pem')} ", said)
        self.assertIn(f"curl --cacert {self.path('tls/ca.pem')} https://localhost:4443/", said)

    def test_refused(self) -> None:
        """What cannot be done is said in a line."""
        devcert.make(self.path("tls"))
        devcert.make(self.path("other"))
        os.replace(self.path("other/ca-key.pem"), self.path("tls/ca-key.pem"))
        for arguments, words in (
            (("--folder", "/proc/nowhere"), "nowhere"),
            (("--folder", self.path("tls")), "do not belong together"),
        ):
            err = io.StringIO()
            self.patch(sys, "stderr", err)
            self.assertEqual(devcert.main(arguments), 1)
            [line] = err.getvalue().splitlines()
            self.assertIn(words, line)
