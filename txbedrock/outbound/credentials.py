"""
AWS credentials as frozen values, renewed ahead of their expiry.

A :class:`CredentialPool` keeps one :class:`CredentialSource` for each distinct
:class:`~txbedrock.core.deployments.CredentialSpec`. The request path calls
:meth:`CredentialSource.current` and gets what is at hand; whatever may block
(files, STS, SSO, metadata services, processes) is done by
:mod:`txbedrock.outbound.chain` in the pool's threads.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.deployments import CredentialSpec
from txbedrock.errors import CredentialsUnavailable
from txbedrock.outbound.recipe import NO_VALID, Failed, Loaded, Recipe, until

__all__ = ["CredentialPool", "CredentialSource"]

_T = TypeVar("_T")

# The services whose model has smithy.api#httpBearerAuth. The others take
# signatures only.
_BEARER_SERVICES = frozenset({"bedrock", "bedrock-runtime"})

# How long before its expiry a credential is replaced, as botocore does it.
_REFRESH_LEAD_S = 900.0

# Files that have no expiry are read again: other tools edit them.
_REREAD_EVERY_S = 300.0

_RETRY_FIRST_S = 2.0
_RETRY_MAX_S = 60.0

# An upstream that refuses credentials may ask for new ones this often.
_REFRESH_NOW_EVERY_S = 10.0

# Sessions of roles with tags: one for each key that is in use.
_MAX_TAGGED = 1000

_STOP_GRACE_S = 1.0
_MAX_THREADS = 32


class _Reactor(Protocol):
    """What is needed of a reactor."""

    def seconds(self) -> float: ...

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> IDelayedCall: ...

    def callFromThread(
        self, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> None: ...


class _Threads(Protocol):
    """What is needed of a thread pool."""

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, Any], object] | None, func: Callable[[], _T]
    ) -> None: ...


class CredentialSource:
    """
    The credentials of one :class:`CredentialSpec`, always at hand.

    To be made by :meth:`CredentialPool.source`.
    """

    _log = Logger()

    def __init__(self, pool: CredentialPool, spec: CredentialSpec, recipe: Recipe) -> None:
        self.spec = spec
        self._pool = pool
        self._reactor = pool.reactor
        self._wall_clock = pool.wall_clock
        self._recipe = recipe
        self._bearer = recipe.bearer
        self._credentials: Credentials | None = recipe.ready
        self._expires = float("inf")
        self._failure: Failed | None = None
        self._failures = 0
        self._alarmed = False
        self._running = False
        self._busy = False
        self._used = False
        self._round = 0
        self._begun = float("-inf")
        self._timer: IDelayedCall | None = None
        self._death: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def describe(self) -> str:
        """Where the credentials come from, in words, without any secret."""
        return self._recipe.words

    async def loaded(self) -> None:
        """Wait until the first load has ended, whatever it brought."""
        if self._busy and self._credentials is None and self._failure is None:
            done: Deferred[None] = Deferred()
            self._waiting.append(done)
            done.addTimeout(self._pool.deadline_s, self._reactor)  # type: ignore[arg-type]
            try:
                await done
            except DeferredTimeout:
                pass

    def current(self, service: str) -> Credentials | BearerToken:
        """
        Those that are valid now. Never blocks.

        :param service: a service's endpoint prefix, such as ``bedrock-runtime``.
        :raises CredentialsUnavailable: there are none, or they have expired, or
            there is only an API key and the service does not take one.
        """
        self._used = True
        if self._bearer is not None and service in _BEARER_SERVICES:
            return self._bearer
        if self._credentials is not None and self._wall_clock() < self._expires:
            return self._credentials
        raise self._unavailable(service)

    async def refresh_now(self, rejected: Credentials | None = None) -> bool:
        """
        Get new credentials because AWS refused the ones at hand.

        Joins a refresh that is running; does nothing when the last one began
        less than ten seconds ago, and when there is nowhere to get others from.

        :param rejected: those that were refused; when the source has others
            already, it returns at once.
        :returns: whether the source has other credentials now.
        """
        before = self._credentials if rejected is None else rejected
        if self._credentials == before and self._running:
            if self._may_begin():
                self._begin()
            if self._busy:
                done: Deferred[None] = Deferred()
                self._waiting.append(done)
                done.addTimeout(self._pool.deadline_s, self._reactor)  # type: ignore[arg-type]
                try:
                    await done
                except DeferredTimeout:
                    return False
        return self._credentials is not None and self._credentials != before

    # For the pool.

    @property
    def awaited(self) -> bool:
        """Whether the start-up waits for the first load."""
        return self._recipe.loads and not self._recipe.optional

    def start(self) -> None:
        if self._recipe.loads and not self._running:
            self._running = True
            self._begin()

    def stop(self) -> None:
        self._running = self._busy = False
        self._round += 1  # what a thread still brings is not wanted any more
        self._cancel_timers()
        self._release()

    # The life of the credentials.

    def _may_begin(self) -> bool:
        now = self._reactor.seconds()
        return self._running and not self._busy and now - self._begun >= _REFRESH_NOW_EVERY_S

    def _renew(self) -> None:
        """It is time to; but nobody renews what nobody uses, if it is one of many."""
        if self._recipe.tagged and not self._used:
            self._pool.forget(self)
        else:
            self._used = False
            self._begin()

    def _begin(self) -> None:
        """One at a time: no timer runs while a load does."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._busy = True
        self._round += 1
        self._begun = self._reactor.seconds()
        self._pool.in_thread(self._recipe.load, partial(self._ended, self._round))

    def _ended(self, round: int, outcome: Loaded | Failed) -> None:
        if round != self._round:
            return
        self._busy = False
        if isinstance(outcome, Loaded) and outcome.expires <= self._wall_clock():
            outcome = Failed("the credentials it got had expired already", NO_VALID)
        if isinstance(outcome, Loaded):
            self._accept(outcome)
        else:
            self._retry(outcome)
        self._release()
        self._pool.settled(self)

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _accept(self, loaded: Loaded) -> None:
        if self._failures or self._alarmed:
            level, format = LogLevel.info, "{credentials}: AWS credentials are back, valid {until}"
        elif self._credentials is None:
            level, format = LogLevel.info, "{credentials}: AWS credentials loaded, valid {until}"
        elif loaded.rereadable and loaded.credentials != self._credentials:
            level, format = LogLevel.info, "{credentials}: AWS credentials have changed"
        else:
            level, format = LogLevel.debug, "{credentials}: AWS credentials valid {until}"
        self._log.emit(level, format, credentials=self.describe(), until=until(loaded.expires))
        self._credentials, self._expires = loaded.credentials, loaded.expires
        self._failure, self._failures, self._alarmed = None, 0, False

        self._cancel_timers()
        remaining = loaded.expires - self._wall_clock()
        if remaining != float("inf"):
            lead = min(_REFRESH_LEAD_S, remaining / 2) * self._pool.about_one()
            self._timer = self._reactor.callLater(max(1.0, remaining - lead), self._renew)
            self._death = self._reactor.callLater(remaining, self._died)
        elif loaded.rereadable:
            delay = _REREAD_EVERY_S * self._pool.about_one()
            self._timer = self._reactor.callLater(delay, self._begin)

    def _retry(self, failed: Failed) -> None:
        self._failure = failed
        self._failures += 1
        delay = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2 ** min(self._failures - 1, 16))
        delay -= delay / 2 * self._pool.jitter()
        if self._recipe.optional and self._credentials is None:
            delay = _REREAD_EVERY_S * self._pool.about_one()
            self._log.debug(
                "{credentials}: no other AWS credentials: {why}",
                credentials=self.describe(),
                why=failed.reason,
            )
        elif self._credentials is None or self._wall_clock() >= self._expires:
            self._alarm("{credentials}: no valid AWS credentials: {why}")
        elif self._failures == 1:
            self._log.warn(
                "{credentials}: no new AWS credentials, the old ones are valid {until}: {why}",
                credentials=self.describe(),
                until=until(self._expires),
                why=failed.reason,
            )
        self._timer = self._reactor.callLater(delay, self._renew)

    def _died(self) -> None:
        remaining = self._expires - self._wall_clock()
        if remaining > 0:  # the wall clock was set back
            self._death = self._reactor.callLater(max(1.0, remaining), self._died)
        else:
            self._alarm("{credentials}: the AWS credentials have expired: {why}")

    def _alarm(self, format: str) -> None:
        if not self._alarmed:
            self._alarmed = True
            why = "no refresh has ended" if self._failure is None else self._failure.reason
            self._log.error(format, credentials=self.describe(), why=why)

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._death):
            if timer is not None and timer.active():
                timer.cancel()

    def _unavailable(self, service: str) -> CredentialsUnavailable:
        why = "not loaded yet" if self._failure is None else self._failure.reason
        if self._credentials is not None:
            why = f"expired, {why}"
            if self._failure is None and self._may_begin():
                self._begin()  # the wall clock ran ahead of the timer
        detail = f"{self.describe()}: {why}"
        if self._recipe.loads:
            bearer_only = self._recipe.optional and self._failure is not None
        else:
            bearer_only = self._bearer is not None
        if bearer_only and self._credentials is None:
            return CredentialsUnavailable(
                "This deployment has only a Bedrock API key, which "
                f"{service} does not accept: configure AWS keys for it.",
                detail=detail,
            )
        if self._failure is not None:
            message = self._failure.message
        elif self._credentials is not None:
            message = NO_VALID
        else:
            message = "The gateway is still loading its AWS credentials. Try again in a moment."
        return CredentialsUnavailable(message, detail=detail)


class CredentialPool(Service):
    """
    All credential sources of the gateway.

    :param reactor: clock, and the way back from threads.
    :param specs: those to load at the start.
    :param environ: what botocore's chain reads in place of the process's
        environment. Never written. The process's own environment still counts
        for what is not about credentials: ``HTTPS_PROXY`` and its kin,
        ``REQUESTS_CA_BUNDLE``, and ``~`` in paths.
    :param deadline_s: the longest that :meth:`loaded` waits.
    :param threadpool: started and stopped by its owner; None: an own one,
        whose threads do not hold up the end of the process.
    :param wall_clock: POSIX seconds; expiry times are compared with it.
    :param jitter: random numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: _Reactor,
        specs: Iterable[CredentialSpec],
        *,
        environ: Mapping[str, str],
        deadline_s: float = 10.0,
        threadpool: _Threads | None = None,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.reactor = reactor
        self.deadline_s = deadline_s
        self.wall_clock = wall_clock
        self.jitter = jitter
        self._environ = dict(environ)
        self._given_threads = threadpool
        self._own_threads: _DaemonThreads | None = None
        self._session_name = f"txbedrock-{secrets.token_hex(4)}"
        self._sources: dict[CredentialSpec, CredentialSource] = {}
        self._tagged: dict[CredentialSpec, None] = {}  # the last used at the end
        self._pending: set[CredentialSource] = set()
        self._deadline: IDelayedCall | None = None
        self._settled = False
        self._waiting: list[Deferred[None]] = []
        for spec in specs:
            self.source(spec)

    def source(self, spec: CredentialSpec) -> CredentialSource:
        """
        The source of these credentials; equal specs share one.

        Of those with session tags, of which there is one for each key, only the
        ones in use are kept.
        """
        found = self._sources.get(spec)
        if spec.session_tags:
            self._tagged.pop(spec, None)
            self._tagged[spec] = None
        if found is None:
            if len(self._tagged) > _MAX_TAGGED:
                self.forget(self._sources[next(iter(self._tagged))])
            recipe = Recipe(spec, self._environ, self._session_name)
            found = self._sources[spec] = CredentialSource(self, spec, recipe)
            if self.running:
                found.start()
        return found

    async def loaded(self) -> None:
        """
        Wait until each source has been loaded or has failed, or the deadline
        after :meth:`startService` has passed, or the service has stopped.
        """
        if not self._settled:
            done: Deferred[None] = Deferred()
            self._waiting.append(done)
            await done

    def startService(self) -> None:
        super().startService()
        if self._given_threads is None:
            self._own_threads = _DaemonThreads(0, _MAX_THREADS, "credentials")
            self._own_threads.start()
        self._settled = False
        self._pending = {source for source in self._sources.values() if source.awaited}
        self._deadline = self.reactor.callLater(self.deadline_s, self._deadline_passed)
        for source in self._sources.values():
            source.start()
        self._settle_if_done()

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        for source in self._sources.values():
            source.stop()
        self._pending.clear()
        self._settle_if_done()
        threads, self._own_threads = self._own_threads, None
        return None if threads is None else self._end(threads)

    # For the sources.

    def forget(self, source: CredentialSource) -> None:
        """Nobody uses it; who comes back gets a new one."""
        source.stop()
        del self._tagged[source.spec]
        del self._sources[source.spec]

    def about_one(self) -> float:
        """A random number from 0.9 to 1.1."""
        return 0.9 + 0.2 * self.jitter()

    def in_thread(
        self,
        load: Callable[[], Loaded | Failed],
        ended: Callable[[Loaded | Failed], None],
    ) -> None:
        """Call ``load`` in a thread and ``ended`` with what it returns in ours."""

        def on_result(success: bool, result: Loaded | Failed | Failure) -> None:
            if isinstance(result, Failure):
                result = Failed(f"the thread ended with {result.type}", NO_VALID)
            self.reactor.callFromThread(ended, result)

        threads = self._given_threads or self._own_threads
        if threads is not None:
            threads.callInThreadWithCallback(on_result, load)

    def settled(self, source: CredentialSource) -> None:
        """The first load of a source is over."""
        self._pending.discard(source)
        self._settle_if_done()

    def _deadline_passed(self) -> None:
        for source in self._pending:
            self._log.error(
                "{credentials}: not loaded within {deadline_s} s, starting without",
                credentials=source.describe(),
                deadline_s=self.deadline_s,
            )
        self._pending.clear()
        self._settle_if_done()

    def _settle_if_done(self) -> None:
        if self._pending or self._settled:
            return
        self._settled = True
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _end(self, threads: _DaemonThreads) -> Deferred[None]:
        """
        End the threads, but do not wait long for one that hangs.

        ``ThreadPool.stop`` joins them, which would block the reactor.
        """
        ended: Deferred[None] = Deferred()

        def end() -> None:
            if grace.active():
                grace.cancel()
                ended.callback(None)

        def join() -> None:
            threads.stop()
            self.reactor.callFromThread(end)

        grace = self.reactor.callLater(_STOP_GRACE_S, ended.callback, None)
        threading.Thread(target=join, name="credentials-end", daemon=True).start()
        return ended


def _daemon_thread(*args: Any, **kwargs: Any) -> threading.Thread:
    return threading.Thread(*args, daemon=True, **kwargs)


class _DaemonThreads(ThreadPool):
    """Threads that may hang without keeping the process from ending."""

    threadFactory = staticmethod(_daemon_thread)  # type: ignore[assignment]
