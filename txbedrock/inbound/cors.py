"""
Cross-origin requests: which web pages may call the gateway from a browser.

A browser asks before most requests (preflight), and shows a page an answer only if its
headers allow that; so an error without them is a riddle to whoever wrote the page. All of
it is about browsers only: who may call at all is decided by keys.

Source: the Fetch standard, "CORS protocol".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from txbedrock.core.headers import HeaderList
from txbedrock.core.replies import Reply, render
from txbedrock.errors import AccessDenied
from txbedrock.inbound.request import Request, new_request_id, send_reply

__all__ = ["Cors"]

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"

# Of an answer, what SDKs and our own clients read: AWS's, ours, Anthropic's, OpenAI's.
_EXPOSED = (b"x-amz", b"x-litellm-", b"anthropic-", b"openai-", b"x-ratelimit-")
_EXPOSED_NAMES = frozenset(
    (
        b"allow",
        b"date",
        b"request-id",
        b"retry-after",
        b"x-next-cursor",
        b"x-request-id",
        b"x-total-count",
    )
)

_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+( *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_LONGEST_NAMES = 4096


class Cors:
    """
    What browsers are told.

    :param origins: such as ``https://app.example.com``; ``*``: any.
    :param headers: that a page may send; ``*``: any.
    :param max_age_s: how long a browser may remember what it was told.
    :param credentials: whether it may send cookies and the like. Not together with any
        origin.
    """

    def __init__(
        self,
        origins: Sequence[str],
        *,
        headers: Sequence[str] = ("*",),
        max_age_s: float = 600.0,
        credentials: bool = False,
    ) -> None:
        self._any = "*" in origins
        if self._any and credentials:
            raise ValueError("credentials are never for any origin")
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._headers = None if "*" in headers else ", ".join(headers).encode("ascii")
        self._max_age = b"%d" % max_age_s
        self._credentials = credentials
        self.preflight = _Preflight(self)
        """Answers what :meth:`is_preflight` is true of."""

    def is_preflight(self, request: Request) -> bool:
        """Does a browser ask whether a page may send a request?"""
        return (
            request.method == b"OPTIONS"
            and request.requestHeaders.hasHeader(b"Origin")
            and request.requestHeaders.hasHeader(b"Access-Control-Request-Method")
        )

    def allowed(self, request: Request) -> bytes | None:
        """The origin that a request's answer may be shown to, or ``*``; None: to nobody."""
        origins = request.requestHeaders.getRawHeaders(b"Origin", ())
        if len(origins) != 1:
            return None
        if self._any:
            return b"*"
        return origins[0] if origins[0] in self._origins else None

    def marked(self, request: Request, answer: HeaderList) -> HeaderList:
        """
        The head of an answer with what is to be said.

        :param answer: its headers.
        """
        ours = self.is_preflight(request)
        kept: HeaderList = []
        exposed: dict[bytes, None] = {}
        vary: list[bytes] = []
        for name, value in answer:
            lower = name.lower()
            if lower == b"vary" and not self._any:
                vary.append(value)
                continue
            if lower.startswith(b"access-control-") and not ours:
                continue  # of AWS: it is for us to say
            kept.append((name, value))
            if lower.startswith(_EXPOSED) or lower in _EXPOSED_NAMES:
                exposed[lower] = None
        origin = self.allowed(request)
        kept += self.headers(origin)
        if origin is not None and exposed and not ours:
            kept.append((b"Access-Control-Expose-Headers", b", ".join(exposed)))
        if not self._any:
            kept.append((b"Vary", _vary(b", ".join(vary), b"Origin")))
        return kept

    def headers(self, origin: bytes | None) -> HeaderList:
        """
        Those of any answer.

        :param origin: from :meth:`allowed`.
        """
        if origin is None:
            return []
        found = [(b"Access-Control-Allow-Origin", origin)]
        if self._credentials:
            found.append((b"Access-Control-Allow-Credentials", b"true"))
        return found

    def _answer(self, request: Request) -> Reply:
        if self.allowed(request) is None:
            error = AccessDenied(
                "Web pages of this origin may not call this gateway: its cors_allow_origins "
                "would have to have it."
            )
            return render(error, new_request_id())
        headers = [
            (b"Access-Control-Allow-Methods", _METHODS),
            (b"Access-Control-Max-Age", self._max_age),
            (b"Vary", b"Access-Control-Request-Headers"),
        ]
        asked = b", ".join(
            request.requestHeaders.getRawHeaders(b"Access-Control-Request-Headers", ())
        )
        if self._headers is not None:
            headers.append((b"Access-Control-Allow-Headers", self._headers))
        elif len(asked) <= _LONGEST_NAMES and _NAMES.fullmatch(asked):
            # Not "*": browsers do not take that for Authorization.
            headers.append((b"Access-Control-Allow-Headers", asked))
        return Reply(200, headers, b"")


class _Preflight(Resource):
    """Answers instead of the resource that is asked about: no key comes with the question."""

    isLeaf = True

    def __init__(self, cors: Cors) -> None:
        Resource.__init__(self)
        self._cors = cors

    def render(self, request: Request) -> int:
        send_reply(request, self._cors._answer(request))
        return NOT_DONE_YET


def _vary(there: bytes, name: bytes) -> bytes:
    """What lets caches know that an answer depends on a header of its request, too."""
    names = {each.strip().lower() for each in there.split(b",")}
    if b"*" in names or name.lower() in names:
        return there
    return b", ".join(filter(None, (there, name)))
