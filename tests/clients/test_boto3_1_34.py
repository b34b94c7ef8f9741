"""
boto3 from before bearer tokens; many a lambda and notebook still has one like it.
"""

from __future__ import annotations

from tests.clients.test_boto3 import CommonTests
from tests.clients.testcase import ClientTestCase


class OldBoto3Tests(CommonTests, ClientTestCase):
    """The same program, where this version has what it takes."""

    client = "boto3_1_34"
    services = 2

    def test_no_bearer(self) -> None:
        """The variable for bearer tokens is not known: there are no credentials at all."""
        self.assert_fails("bearer_tls", "NoCredentialsError")
        error = self.result("bearer_plain")
        self.assert_raised(error, "NoCredentialsError", "Unable to locate credentials")

    def test_no_Rerank(self) -> None:
        """There is no such operation yet."""
        self.assert_fails("rerank", "has no attribute 'rerank'")
