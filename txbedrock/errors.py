"""
What the gateway itself refuses, and how each refusal looks to an AWS SDK.

Each class states its HTTP status and AWS's error code. The message is written
for the client: it says what to change. What only the operator may know goes
into ``detail``, which is logged and never sent.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "AccessDenied",
    "BadHttp",
    "BodyTimeout",
    "BodyTooLarge",
    "ConfigError",
    "CredentialsUnavailable",
    "Fault",
    "GrantExists",
    "GrantNotFound",
    "HeadersTooLarge",
    "InternalError",
    "InvalidRequest",
    "InvalidSignature",
    "KeyBlocked",
    "KeyExpired",
    "LedgerUnavailable",
    "MethodNotAllowed",
    "NotSupported",
    "ProxyError",
    "Superseded",
    "UnknownModel",
    "UnknownOperation",
    "UnrecognizedKey",
    "UpstreamBroke",
    "UpstreamTimeout",
    "UpstreamUnavailable",
]


class Fault(Enum):
    """Whose fault it is that an exchange did not go well."""

    CLIENT = "client"
    POLICY = "policy"
    """The key's, its limits' or its budget's: as the operator wants it."""

    UPSTREAM = "upstream"
    PROXY = "proxy"


class ProxyError(Exception):
    """
    A request is refused by the gateway, or cannot be served.

    :param message: for the client.
    :param detail: for the log only.
    :param headers: further headers of the reply.
    """

    status: int = 500
    code: str = "InternalServerException"

    fault: Fault = Fault.PROXY
    """Whose fault it is."""

    maybe_billed: bool = False
    """Bedrock may have got the request, worked on it and charge for it."""

    def __init__(
        self, message: str, *, detail: str = "", headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.headers = headers


class UnrecognizedKey(ProxyError):
    """No key, or one that nobody issued. SDKs do not retry it."""

    fault = Fault.POLICY
    status = 403
    code = "UnrecognizedClientException"


class AccessDenied(ProxyError):
    """The key is known and may not do this. SDKs do not retry it."""

    fault = Fault.POLICY
    status = 403
    code = "AccessDeniedException"


class InvalidSignature(UnrecognizedKey):
    """
    The client signed with a secret of the gateway's own, and the signature is wrong.

    :param code: AWS's, such as ``InvalidSignatureException``.
    """

    def __init__(
        self, message: str, code: str = "InvalidSignatureException", *, detail: str = ""
    ) -> None:
        super().__init__(message, detail=detail)
        self.code = code


class KeyExpired(UnrecognizedKey):
    """The key was good once. SDKs do not retry it."""

    code = "ExpiredTokenException"


class KeyBlocked(AccessDenied):
    """The key, its user or its team is blocked."""


class InvalidRequest(ProxyError):
    """The request cannot be right. SDKs do not retry it."""

    fault = Fault.CLIENT
    status = 400
    code = "ValidationException"


class BadHttp(InvalidRequest):
    """The bytes are not an HTTP request."""


class HeadersTooLarge(InvalidRequest):
    status = 431


class BodyTooLarge(InvalidRequest):
    status = 413


class BodyTimeout(ProxyError):
    """The client took too long to send its request."""

    fault = Fault.CLIENT
    status = 408
    code = "RequestTimeoutException"


class UnknownModel(ProxyError):
    fault = Fault.CLIENT
    status = 404
    code = "ResourceNotFoundException"


class UnknownOperation(ProxyError):
    fault = Fault.CLIENT
    status = 404
    code = "UnknownOperationException"


class MethodNotAllowed(UnknownOperation):
    """The path is one of Bedrock's, the method is not."""

    status = 405


class NotSupported(UnknownOperation):
    """An operation of Bedrock's that this gateway cannot carry."""

    status = 501


class GrantNotFound(ProxyError):
    """There is no such key, user, team ..."""

    fault = Fault.CLIENT
    status = 404
    code = "ResourceNotFoundException"


class GrantExists(ProxyError):
    """There is one with this id or alias already, or something still needs it."""

    fault = Fault.CLIENT
    status = 409
    code = "ConflictException"


class CredentialsUnavailable(ProxyError):
    """There are no usable AWS credentials now. SDKs retry it."""

    status = 503
    code = "ServiceUnavailableException"


class LedgerUnavailable(ProxyError):
    """What requests cost cannot be kept now, and so none is carried. SDKs retry it."""

    status = 503
    code = "ServiceUnavailableException"


class UpstreamUnavailable(ProxyError):
    """There is no connection to be had. SDKs retry it."""

    fault = Fault.UPSTREAM
    status = 503
    code = "ServiceUnavailableException"


class UpstreamBroke(UpstreamUnavailable):
    """The connection broke before the answer was whole. SDKs retry it."""

    maybe_billed = True


class UpstreamTimeout(ProxyError):
    """Bedrock did not answer within the time limit. SDKs do not retry it."""

    fault = Fault.UPSTREAM
    status = 408
    code = "ModelTimeoutException"
    maybe_billed = True


class Superseded(ProxyError):
    """An attempt was given up because another one, made beside it, was faster."""

    fault = Fault.POLICY
    code = "Superseded"
    maybe_billed = True


class InternalError(ProxyError):
    """A fault of the gateway."""


class ConfigError(Exception):
    """
    The configuration cannot be used.

    :param problems: one sentence each, beginning with ``file:line: key.path: ``.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
