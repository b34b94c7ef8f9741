"""
What a configuration says of clients' connections, and of web pages.
"""

from __future__ import annotations

from tests.test_config import ConfigCase
from txbedrock.config import ClientSettings, CorsSettings


class ClientTests(ConfigCase):
    def clients(self, content: str) -> ClientSettings:
        return self.load(f"general_settings: {{{content}}}").clients

    def problem(self, content: str) -> str:
        [problem] = self.problems(f"general_settings: {{{content}}}")
        return problem

    def test_standard(self) -> None:
        """Without a word there are bounds, and no web page may call."""
        self.assertEqual(
            self.clients(""),
            ClientSettings(10_000, 0, 10_000, CorsSettings((), ("*",), False, 600)),
        )

    def test_counts(self) -> None:
        """Connections and requests are whole numbers."""
        found = self.clients(
            "max_connections: 20000, max_connections_per_address: 50,"
            "max_requests_per_connection: 0"
        )
        self.assertEqual(found, ClientSettings(20_000, 50, 0))
        for content in (
            "max_connections: 0",
            "max_connections: 1.5",
            "max_connections: many",
            "max_connections: 2000000",
            "max_connections_per_address: -1",
            "max_requests_per_connection: true",
        ):
            self.assertIn("expected a whole number", self.problem(content))

    def test_origins(self) -> None:
        """One or several; as browsers write them."""
        for content, origins in {
            '"*"': ("*",),
            "https://app.example.com": ("https://app.example.com",),
            '[https://App.Example.com, "http://localhost:3000"]': (
                "https://app.example.com",
                "http://localhost:3000",
            ),
            '"https://a.example.com:443"': ("https://a.example.com",),
            '"http://a.example.com:443"': ("http://a.example.com:443",),
            '"http://[::1]:80"': ("http://[::1]",),
            '"http://[::1]"': ("http://[::1]",),
            '"null"': ("null",),
            "chrome-extension://abcdef": ("chrome-extension://abcdef",),
            "[]": (),
        }.items():
            found = self.clients(f"cors_allow_origins: {content}").cors
            self.assertEqual(found.allow_origins, origins)
        for content in (
            "app.example.com",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://*.example.com",
            '"https://a.example.com, https://b.example.com"',
            "https://user@a.example.com",
        ):
            problem = self.problem(f"cors_allow_origins: {content}")
            self.assertIn("expected an origin such as https://app.example.com", problem)
            self.assertIn("general_settings.cors_allow_origins", problem)

    def test_cors(self) -> None:
        """Everything together."""
        found = self.clients(
            "cors_allow_origins: https://a.example.com, cors_allow_credentials: true,"
            "cors_allow_headers: [Authorization, X-Other], cors_max_age: 1h"
        )
        self.assertEqual(
            found.cors,
            CorsSettings(("https://a.example.com",), ("Authorization", "X-Other"), True, 3600),
        )
        self.assertIn("name of a header", self.problem('cors_allow_headers: ["a b"]'))

    def test_credentials(self) -> None:
        """Never for any origin."""
        problem = self.problem('cors_allow_origins: "*", cors_allow_credentials: true')
        self.assertIn("cors_allow_credentials: found true", problem)

    def test_misspelled(self) -> None:
        """A misspelling is told of."""
        for wrong, right in {
            "max_connection": "max_connections",
            "cors_allow_origin": "cors_allow_origins",
        }.items():
            self.assertIn(f"expected {right}", self.problem(f"{wrong}: 1"))
