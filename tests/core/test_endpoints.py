"""
The hosts of AWS, as botocore finds them, and those that an operator configures.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import EndpointProviderError
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.endpoints import BaseUrl, Endpoints, parse_base_url
from txbedrock.data import load
from txbedrock.data.generate_operations import SERVICES, builtin_loader

MADE_UP = ("us-mars-9", "cn-moon-1", "zz-nowhere-1", "us-gov-north-7", "il-central-12")


def botocore_partitions() -> Any:
    return builtin_loader().load_data("partitions")


def providers(partitions: Any) -> dict[str, Any]:
    loader = builtin_loader()
    return {
        service: EndpointProvider(
            loader.load_service_model(service, "endpoint-rule-set-1"), partitions
        )
        for service in SERVICES
    }


class AwsTests(SynchronousTestCase):
    def test_as_botocore(self) -> None:
        """
        Every service in every region of every partition is where botocore says
        that it is, with FIPS and dual-stack on or off; also in a region that is
        newer than this gateway.
        """
        partitions = botocore_partitions()
        regions = [name for each in partitions["partitions"] for name in each["regions"]]
        self.assertGreater(len(regions), 50)
        by_service = providers(partitions)
        table = load("partitions")
        for fips, dualstack in itertools.product((False, True), repeat=2):
            endpoints = Endpoints(table, overrides={}, use_fips=fips, use_dualstack=dualstack)
            for service, region in itertools.product(SERVICES, (*regions, *MADE_UP)):
                expected = by_service[service].resolve_endpoint(
                    Region=region, UseFIPS=fips, UseDualStack=dualstack
                )
                found = endpoints.base_url(service, region)
                self.assertEqual(f"https://{found.authority.decode()}", expected.url)
                self.assertEqual(
                    (found.scheme, found.host, found.port, found.path_prefix),
                    (b"https", found.authority, 443, b""),
                )

    def test_unsupported_as_botocore(self) -> None:
        """
        FIPS and dual-stack in a partition without them are refused where botocore
        refuses them, with a sentence that names the partition.
        """
        for has_fips, has_dualstack in itertools.product((False, True), repeat=2):
            partitions = json.loads(json.dumps(botocore_partitions()))
            table = load("partitions")
            for theirs, ours in zip(partitions["partitions"], table["partitions"], strict=True):
                theirs["outputs"]["supportsFIPS"] = ours["supportsFIPS"] = has_fips
                theirs["outputs"]["supportsDualStack"] = ours["supportsDualStack"] = has_dualstack
            provider = providers(partitions)["bedrock-runtime"]
            for fips, dualstack in itertools.product((False, True), repeat=2):
                endpoints = Endpoints(table, overrides={}, use_fips=fips, use_dualstack=dualstack)
                try:
                    expected = provider.resolve_endpoint(
                        Region="us-gov-west-1", UseFIPS=fips, UseDualStack=dualstack
                    ).url
                except EndpointProviderError:
                    error = self.assertRaises(
                        ValueError, endpoints.base_url, "bedrock-runtime", "us-gov-west-1"
                    )
                    self.assertIn("aws-us-gov", str(error))
                    self.assertIn("turn ", str(error))
                else:
                    found = endpoints.base_url("bedrock-runtime", "us-gov-west-1")
                    self.assertEqual(f"https://{found.authority.decode()}", expected)

    def test_region_cannot_choose_the_host(self) -> None:
        """
        What a client gives as a region does not lead a signed request elsewhere.
        """
        endpoints = Endpoints(load("partitions"), overrides={})
        for region in (
            "",
            "useast1",
            "us-east-1.evil.example",
            "us-east-1/",
            "us-east-1#",
            "us-east-1?",
            "us-east-1:8080",
            "user@evil-example",
            "us-east-1\n",
            "US-EAST-1",
            "us--east-1",
            "-us-east-1",
            "us-east-1-",
            "us-éast-1",
            "us-east-١",
            "a-" * 20 + "1",
            "us-east-" + "1" * 1000,
        ):
            error = self.assertRaises(ValueError, endpoints.base_url, "bedrock", region)
            self.assertIn("is not an AWS region", str(error))
            self.assertLess(len(str(error)), 200)

    def test_unknown_service(self) -> None:
        """A service that is not Bedrock's has no address here."""
        endpoints = Endpoints(load("partitions"), overrides={})
        for service in ("s3", "", "bedrock.evil.example/", "bedrock_runtime"):
            error = self.assertRaises(ValueError, endpoints.base_url, service, "us-east-1")
            self.assertIn("bedrock-runtime", str(error))

    def test_memory_is_bounded(self) -> None:
        """A client that thinks up regions does not fill the memory."""
        endpoints = Endpoints(load("partitions"), overrides={})
        for number in range(3000):
            endpoints.base_url("bedrock", f"us-east-{number}")
        self.assertLessEqual(len(endpoints._cache), 1024)

    def test_found_once(self) -> None:
        """Requests to one place share one value."""
        endpoints = Endpoints(load("partitions"), overrides={})
        self.assertIs(
            endpoints.base_url("bedrock", "us-east-1"), endpoints.base_url("bedrock", "us-east-1")
        )


class OverrideTests(SynchronousTestCase):
    def test_override(self) -> None:
        """
        An override serves its service in all regions, and no other service; FIPS
        and dual-stack do not change it.
        """
        endpoints = Endpoints(
            load("partitions"),
            overrides={"bedrock-runtime": "http://127.0.0.1:8080/stage"},
            use_fips=True,
            use_dualstack=True,
        )
        for region in ("us-east-1", "cn-north-1"):
            self.assertEqual(
                endpoints.base_url("bedrock-runtime", region),
                BaseUrl(b"http", b"127.0.0.1", 8080, b"127.0.0.1:8080", b"/stage"),
            )
        self.assertEqual(
            endpoints.base_url("bedrock", "us-east-1").host,
            b"bedrock-fips.us-east-1.api.aws",
        )

    def test_region_is_checked(self) -> None:
        """An override does not make a bad region good: it is signed for."""
        endpoints = Endpoints(load("partitions"), overrides={"bedrock": "http://localhost"})
        self.assertRaises(ValueError, endpoints.base_url, "bedrock", "us-east-1/x")

    def test_bad_override(self) -> None:
        """An override that cannot be used is refused at start, by its service's name."""
        error = self.assertRaises(
            ValueError, Endpoints, load("partitions"), overrides={"bedrock": "localhost:1"}
        )
        self.assertEqual(str(error), "bedrock: a base URL begins with http:// or https://")

    def test_override_of_unknown_service(self) -> None:
        """A mistyped service is refused, not passed over."""
        error = self.assertRaises(
            ValueError,
            Endpoints,
            load("partitions"),
            overrides={"bedrock_runtime": "http://localhost"},
        )
        self.assertIn("'bedrock_runtime'", str(error))
        self.assertIn("bedrock-runtime", str(error))


class ParseBaseUrlTests(SynchronousTestCase):
    def test_good(self) -> None:
        """Each form of a base URL gives what connecting and signing need."""
        for text, expected in {
            "https://h.example": (b"https", b"h.example", 443, b"h.example", b""),
            "https://h.example/": (b"https", b"h.example", 443, b"h.example", b""),
            "HTTPS://H.Example//": (b"https", b"h.example", 443, b"h.example", b""),
            "https://h:443": (b"https", b"h", 443, b"h", b""),
            "https://h:": (b"https", b"h", 443, b"h", b""),
            "http://h:80": (b"http", b"h", 80, b"h", b""),
            "http://h": (b"http", b"h", 80, b"h", b""),
            "http://h:443": (b"http", b"h", 443, b"h:443", b""),
            "https://h:80": (b"https", b"h", 80, b"h:80", b""),
            "http://h:65535/a": (b"http", b"h", 65535, b"h:65535", b"/a"),
            "http://10.0.0.1:4000/bedrock/": (
                b"http",
                b"10.0.0.1",
                4000,
                b"10.0.0.1:4000",
                b"/bedrock",
            ),
            "http://[::1]": (b"http", b"::1", 80, b"[::1]", b""),
            "https://[2001:DB8::0:1]:8443/x/": (
                b"https",
                b"2001:db8::1",
                8443,
                b"[2001:db8::1]:8443",
                b"/x",
            ),
            "http://my_stand-in:1/a%2Fb//c;d@e:f": (
                b"http",
                b"my_stand-in",
                1,
                b"my_stand-in:1",
                b"/a%2Fb//c;d@e:f",
            ),
            "https://h/.well-known/..x": (b"https", b"h", 443, b"h", b"/.well-known/..x"),
        }.items():
            self.assertEqual(parse_base_url(text), BaseUrl(*expected), text)

    def test_bad(self) -> None:
        """What cannot be a base URL is refused, saying why."""
        for text, part in {
            "": "http:// or https://",
            "h.example": "http:// or https://",
            "//h.example": "http:// or https://",
            "h.example:443": "http:// or https://",
            "https:/h.example": "http:// or https://",
            "ftp://h": "http:// or https://",
            "https+unix://h": "http:// or https://",
            "https://": "has a host",
            "https:///path": "has a host",
            "https://:443": "has a host",
            "https://h?": "no query",
            "https://h/?a=b": "no query",
            "https://h#": "no fragment",
            "https://h/a#b": "no fragment",
            "https://user@h": "no user and password",
            "https://user:secret@h": "no user and password",
            "https://@h": "no user and password",
            "https://h:0": "1 to 65535",
            "https://h:65536": "1 to 65535",
            "https://h:x": "1 to 65535",
            "https://h:-1": "1 to 65535",
            "https://h:+1": "1 to 65535",
            "https://::1": "[IPv6]",
            "https://[::1": "[IPv6]",
            "https://[]": "base URL",
            "https://[::g]": "IPv6",
            "https://[fe80::1%25eth0]": "no zone",
            "https://a..b": "the host",
            "https://.a": "the host",
            "https://-a": "the host",
            "https://a,b": "the host",
            "https://h%2eexample": "the host",
            "https://" + "a" * 254: "the host",
            "https://h/..": "'..'",
            "https://h/a/../b": "'..'",
            "https://h/./a": "'.'",
            "https://h/%2e%2E/a": "'..'",
            "https://h/a/.%2e": "'..'",
            "https://h/a%2F..%2fb": "'..'",
            "https://h.example\\@evil.example": "printable ASCII",
            "https://h example": "printable ASCII",
            " https://h": "printable ASCII",
            "https://h\n": "printable ASCII",
            "https://h\t/": "printable ASCII",
            "https://bücher.example": "xn--",
            "https://h.{region}.example": "braces",
        }.items():
            error = self.assertRaises(ValueError, parse_base_url, text)
            self.assertIn(part, str(error), text)

    def test_no_secret_in_the_message(self) -> None:
        """A password in a URL, whatever else is wrong with it, stays out of the message."""
        for text in (
            "https://user:hunter2@h",
            "https://user:hunter2@h:bad",
            "ftp://user:hunter2@h",
            "https://user:hunter2@h?x",
            "https://user:hunter2@[h",
            "https://user:hunter2@h/..",
            "https://user:hunter2@h é",
        ):
            error = self.assertRaises(ValueError, parse_base_url, text)
            self.assertNotIn("hunter2", str(error))
