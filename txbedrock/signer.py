"""
A client's request and the deployment chosen for it -> the request for AWS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from twisted.logger import Logger

from txbedrock.core import sigv4
from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.deployments import Deployment
from txbedrock.core.endpoints import BaseUrl, Endpoints, parse_base_url
from txbedrock.core.headers import header, upstream_headers
from txbedrock.core.identity import (
    Identity,
    body_with_metadata,
    headers_with_metadata,
    metadata_goes_in,
)
from txbedrock.core.models import Choice
from txbedrock.core.operations import Match, Operation
from txbedrock.errors import InvalidRequest
from txbedrock.interfaces import (
    ICredentials,
    ICredentialSource,
    InboundRequest,
    IUpstreamResponse,
    UpstreamRequest,
)

__all__ = ["Signer"]

# Error codes of a refused signature. When one of them comes with a Date that
# is minutes away from our clock, the clock is the reason.
_REFUSALS = frozenset(
    (
        b"InvalidSignatureException",
        b"SignatureDoesNotMatch",
        b"RequestTimeTooSkewed",
        b"RequestExpired",
        b"AccessDeniedException",
    )
)
_SKEW_S = 120.0

_MOST_PLACES = 1024

# Those of credentials that were good, and are not any more.
_STALE = frozenset(
    (
        b"ExpiredToken",
        b"ExpiredTokenException",
        b"InvalidClientTokenId",
        b"UnrecognizedClientException",
    )
)


class _Place(NamedTuple):
    """Where requests of one kind go, for one deployment."""

    operation: Operation
    deployment: Deployment
    host: tuple[bytes, bytes]
    """The header."""

    path: bytes
    url: bytes
    """Without a query."""

    source: ICredentialSource | None
    """None: it depends on whom a request is for."""

    first_byte_s: float


class Signer:
    """
    Finds the host, drops what must not go up, and signs.

    :param first_byte_s: how long an answer's head is waited for, unless a
        deployment says otherwise.
    :param wall_clock: POSIX seconds.
    :param user_header: lower-case name of a header that speaks to the gateway.
    :param request_metadata: what AWS is told in the metadata of a request, of
        :data:`~txbedrock.core.identity.IDENTITY_FIELDS`.
    """

    _log = Logger()

    def __init__(
        self,
        endpoints: Endpoints,
        credentials: ICredentials,
        *,
        first_byte_s: float,
        wall_clock: Callable[[], float],
        user_header: bytes | None = None,
        request_metadata: Sequence[str] = (),
    ) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._first_byte_s = first_byte_s
        self._now = wall_clock
        self._user_header = user_header
        self._request_metadata = request_metadata
        self._keys = sigv4.SigningKeys()
        self._overrides: dict[str, BaseUrl] = {}
        self._places: dict[tuple[str, str, str, bytes], _Place] = {}
        # Seconds to add to our clock, by authority; few hosts have any.
        self._clock_offsets: dict[bytes, float] = {}

    async def with_metadata(
        self, request: InboundRequest, match: Match, identity: Identity
    ) -> InboundRequest:
        """
        The request with what AWS is to be told of whom it is for; usually as it is.

        :raises InvalidRequest: the client's own metadata is not readable.
        """
        if not self._request_metadata:
            return request
        place = metadata_goes_in(match.operation.name)
        ours = identity.metadata(self._request_metadata)
        if not (place and ours):
            return request
        if place == "header":
            return replace(request, headers=headers_with_metadata(request.headers, ours))
        body = await request.body.edited(lambda body: body_with_metadata(body, ours))
        return replace(request, body=body)

    async def sign(
        self, request: InboundRequest, match: Match, choice: Choice, identity: Identity
    ) -> UpstreamRequest:
        """
        What goes on the wire, signed now.

        :param identity: whom it is for, where AWS is to be told.
        :raises CredentialsUnavailable: there are none for this deployment.
        :raises InvalidRequest: the path cannot be signed.
        """
        place = self._place(match, choice)
        operation, path, query = place.operation, place.path, request.raw_query
        kept, signed = upstream_headers(request.headers, self._user_header)
        headers = [place.host, *kept]
        source = place.source
        if source is None:
            source = self._source(choice, identity)
            await source.loaded()
        credentials = source.current(operation.service)
        if isinstance(credentials, BearerToken):
            headers.append((b"Authorization", b"Bearer " + credentials.token.encode()))
        else:
            now = self._now()
            if self._clock_offsets:
                now += self._clock_offsets.get(place.host[1], 0.0)
            try:
                headers += sigv4.sign(
                    credentials,
                    method=request.method,
                    raw_path=path,
                    raw_query=query or b"",
                    headers=[place.host, *signed],
                    payload_sha256=request.body.sha256,
                    region=choice.region,
                    service=operation.signing_name,
                    timestamp=sigv4.amz_date(now),
                    keys=self._keys,
                )
            except sigv4.BadPath as error:
                raise InvalidRequest(str(error)) from None
        return UpstreamRequest(
            request.method,
            place.url if query is None else b"%b?%b" % (place.url, query),
            headers,
            request.body,
            place.first_byte_s,
            credentials,
        )

    def _place(self, match: Match, choice: Choice) -> _Place:
        """:raises InvalidRequest: the model's id cannot be in a path."""
        operation, deployment = match.operation, choice.deployment
        key = deployment.id, choice.model_id, choice.region, match.model_suffix
        place = self._places.get(key)
        if place is not None and place.deployment is deployment and place.operation is operation:
            return place
        base = self._base_url(match, choice)
        path = base.path_prefix + match.path_for(choice.model_id)
        timeout_s = deployment.timeout_s
        if operation.streams and deployment.stream_timeout_s is not None:
            timeout_s = deployment.stream_timeout_s
        place = _Place(
            operation,
            deployment,
            (b"Host", base.authority),
            path,
            b"%b://%b%b" % (base.scheme, base.authority, path),
            None if deployment.session_tags else self._credentials.source(deployment.credentials),
            self._first_byte_s if timeout_s is None else timeout_s,
        )
        if operation.takes_model:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            self._places[key] = place
        return place

    def _source(self, choice: Choice, identity: Identity) -> ICredentialSource:
        """Where a deployment's credentials come from."""
        spec = choice.deployment.credentials
        if choice.deployment.session_tags:
            spec = replace(spec, session_tags=identity.tags(choice.deployment.session_tags))
        return self._credentials.source(spec)

    async def learn(
        self,
        match: Match,
        choice: Choice,
        identity: Identity,
        signed: UpstreamRequest,
        response: IUpstreamResponse,
    ) -> bool:
        """
        Has the upstream refused what we signed for a reason that can be helped: because
        our clock is wrong, or because the credentials are not good any more?

        :returns: True when another try makes sense.
        """
        if response.status not in (400, 401, 403):
            return False
        if self._learn_clock(match, choice, response):
            return True
        code = (header(response.headers, b"x-amzn-errortype") or b"").partition(b":")[0]
        if code not in _STALE or not isinstance(signed.credentials, Credentials):
            return False
        return await self._source(choice, identity).refresh_now(signed.credentials)

    def _base_url(self, match: Match, choice: Choice) -> BaseUrl:
        override = choice.deployment.endpoint_url
        if override is None or not match.operation.takes_model:
            return self._endpoints.base_url(match.operation.service, choice.region)
        base = self._overrides.get(override)
        if base is None:
            base = self._overrides[override] = parse_base_url(override)
        return base

    def _learn_clock(self, match: Match, choice: Choice, response: IUpstreamResponse) -> bool:
        """:returns: whether our clock was wrong, and is corrected."""
        code = (header(response.headers, b"x-amzn-errortype") or b"").partition(b":")[0]
        date = header(response.headers, b"date")
        if code not in _REFUSALS or date is None:
            return False
        authority = self._base_url(match, choice).authority
        offset = sigv4.clock_offset(self._now(), date)
        known = self._clock_offsets.get(authority, 0.0)
        if offset is None or abs(offset - known) < _SKEW_S:
            return False
        self._clock_offsets[authority] = offset
        self._log.warn(
            "our clock differs from that of {authority} by {offset:.0f} s; signing with theirs",
            authority=authority.decode(),
            offset=offset,
        )
        return True
