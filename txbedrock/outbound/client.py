"""
The treq client of the forward path.
"""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient, _Response
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer

from txbedrock.core.headers import HeaderList

__all__ = ["ForwardingClient"]


class ForwardingClient(HTTPClient):
    """
    A treq client that changes nothing.

    As treq comes, it asks for gzip and decodes it, follows redirects, keeps
    one jar of cookies for everybody and normalises URLs. A gateway may do none
    of that: the answer of one tenant would carry the cookie of another, and
    the bytes sent would not be the bytes signed. The answers are treq's, so
    the rest of its interface holds.

    :param agent: :class:`.agent.ExactAgent`, or any other that takes a list of headers.
    """

    def __init__(self, agent: IAgent) -> None:
        HTTPClient.__init__(self, agent)
        self._no_cookies = IndexableCookieJar()

    def request(  # type: ignore[override]
        self,
        method: str | bytes,
        url: str | bytes,
        *,
        headers: Headers | HeaderList | None = None,
        data: IBodyProducer | None = None,
        **_ignored: Any,
    ) -> Deferred[_Response]:
        """
        Send a request exactly as it is given.

        :param url: absolute; not parsed beyond its authority.
        :param headers: with ``Host``, without ``Content-Length``; a list goes out in its
            order and its case.
        :param data: a producer of the body.
        :param _ignored: treq's options that ask for what this never does
            (``allow_redirects=False``, ``unbuffered=True``).
        """
        answer: Deferred[Any] = self._agent.request(
            method if isinstance(method, bytes) else method.encode("ascii"),
            url if isinstance(url, bytes) else url.encode("ascii"),
            headers,  # type: ignore[arg-type]
            data,
        )
        return answer.addCallback(_Response, self._no_cookies)
