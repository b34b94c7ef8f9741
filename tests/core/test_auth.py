"""Tests for :mod:`txbedrock.core.auth`."""

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.auth import hash_key, presented_key, same_key, signing_scope_of

KEY = b"sk-planted-1234"
SCOPE = b"/20261122/us-west-2/bedrock/aws4_request, SignedHeaders=host;x-amz-date, Signature=00"


class PresentedKeyTests(SynchronousTestCase):
    """A key is found wherever a client of Bedrock may put it."""

    def test_carriers(self) -> None:
        """Each carrier, in each spelling."""
        for name, value, carrier in (
            (b"X-Api-Key", KEY, "header"),
            (b"x-litellm-api-key", KEY, "header"),
            (b"x-litellm-api-key", b"Bearer " + KEY, "header"),
            (b"Authorization", b"Bearer " + KEY, "bearer"),
            (b"authorization", b"bearer   " + KEY, "bearer"),
            (b"Authorization", b"Basic " + KEY, "bearer"),
            (b"Authorization", b"AWS4-HMAC-SHA256 Credential=" + KEY + SCOPE, "sigv4"),
            (b"Authorization", b"AWS4-HMAC-SHA256 Credential=Bearer " + KEY + SCOPE, "sigv4"),
            (b"X-Amz-Security-Token", KEY, "session-token"),
        ):
            found = presented_key([(name, value)])
            assert found is not None
            self.assertEqual((found.secret, found.carrier), (KEY, carrier), value)

    def test_order(self) -> None:
        """A header of its own is preferred to Authorization."""
        found = presented_key([(b"Authorization", b"Bearer other"), (b"x-api-key", KEY)])
        assert found is not None
        self.assertEqual(found.secret, KEY)

    def test_dummy_credentials_with_token(self) -> None:
        """The session token of a client with dummy keys is a second candidate."""
        found = presented_key(
            [
                (b"Authorization", b"AWS4-HMAC-SHA256 Credential=dummy" + SCOPE),
                (b"X-Amz-Security-Token", KEY),
            ]
        )
        assert found is not None
        self.assertEqual((found.secret, found.candidates), (b"dummy", (KEY,)))

    def test_none(self) -> None:
        """No key, an empty one, and an unreadable signature are no key."""
        for headers in (
            [],
            [(b"Authorization", b"")],
            [(b"Authorization", b"Bearer ")],
            [(b"Authorization", b"Bearer")],
            [(b"x-api-key", b"")],
            [(b"Authorization", b"AWS4-HMAC-SHA256 rubbish")],
            [(b"Authorization", b"AWS4-HMAC-SHA256 Credential=a/b")],
        ):
            self.assertIsNone(presented_key(headers), headers)

    def test_repr_hides(self) -> None:
        """Neither the key nor the candidates show."""
        found = presented_key(
            [
                (b"Authorization", b"AWS4-HMAC-SHA256 Credential=" + KEY + SCOPE),
                (b"X-Amz-Security-Token", KEY),
            ]
        )
        self.assertNotIn("planted", repr(found))

    def test_scope(self) -> None:
        """Region and signing name of a signed request are told."""
        header = (b"Authorization", b"AWS4-HMAC-SHA256 Credential=" + KEY + SCOPE)
        self.assertEqual(signing_scope_of([header]), (KEY, b"us-west-2", b"bedrock"))
        self.assertIsNone(signing_scope_of([(b"Authorization", b"Bearer x")]))


class SameKeyTests(SynchronousTestCase):
    """Keys are compared by hash."""

    def test_same(self) -> None:
        """Only the very key is the same."""
        expected = hash_key(KEY)
        self.assertTrue(same_key(KEY, expected))
        for other in (b"", KEY[:-1], KEY + b" ", KEY.upper()):
            self.assertFalse(same_key(other, expected))
