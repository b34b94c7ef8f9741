"""
How a deployment is: kinds of failures, circuits, expected times.
"""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.health import (
    IN_ROTATION,
    Circuit,
    CircuitState,
    FailureKind,
    HealthSettings,
    Pace,
    classify,
    retry_after_s,
)

K = FailureKind
OPEN, CLOSED, HALF_OPEN = CircuitState.OPEN, CircuitState.CLOSED, CircuitState.HALF_OPEN


class ClassifyTests(SynchronousTestCase):
    """Failures are told apart by AWS's name for them, then by status."""

    def test_success(self) -> None:
        """An answer without an error is no failure."""
        for status in (200, 202, 204, 304):
            self.assertIsNone(classify(status, ""), status)

    def test_names(self) -> None:
        """AWS's error types, whatever the status says."""
        for status, name, kind in (
            (429, "ThrottlingException", K.THROTTLED),
            (400, "ThrottlingException", K.THROTTLED),
            (429, "TooManyRequestsException", K.THROTTLED),
            (400, "ServiceQuotaExceededException", K.THROTTLED),
            (402, "ServiceQuotaExceededException", K.THROTTLED),
            (503, "ServiceUnavailableException", K.UNAVAILABLE),
            (500, "InternalServerException", K.UNAVAILABLE),
            (424, "ModelErrorException", K.UNAVAILABLE),
            (408, "ModelTimeoutException", K.TIMEOUT),
            (429, "ModelNotReadyException", K.NOT_READY),
            (424, "ModelNotReadyException", K.NOT_READY),
            (424, "ModelStreamErrorException", K.BROKE),
            (403, "AccessDeniedException", K.DENIED),
            (404, "ResourceNotFoundException", K.DENIED),
            (403, "UnrecognizedClientException", K.BAD_CREDENTIALS),
            (403, "InvalidSignatureException", K.BAD_CREDENTIALS),
            (403, "ExpiredTokenException", K.BAD_CREDENTIALS),
            (400, "ValidationException", K.CLIENT),
            (400, "ConflictException", K.CLIENT),
            (404, "UnknownOperationException", K.CLIENT),
            # Of the OpenAI and Anthropic paths.
            (429, "rate_limit_error", K.THROTTLED),
            (529, "overloaded_error", K.UNAVAILABLE),
            (400, "invalid_request_error", K.CLIENT),
            (400, "context_length_exceeded", K.CONTEXT_WINDOW),
        ):
            self.assertIs(classify(status, name), kind, name)

    def test_forms(self) -> None:
        """A namespace before the name, a URL behind it, and the form of event streams."""
        for name in (
            "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/",
            "com.amazon.coral.availability#ThrottlingException",
            "com.amazon#ThrottlingException:http://x/#y",
            "throttlingException",
            " ThrottlingException ",
        ):
            self.assertIs(classify(200, name), K.THROTTLED, name)

    def test_statuses(self) -> None:
        """Without a name, or with one that is new."""
        for status, kind in (
            (400, K.CLIENT),
            (401, K.BAD_CREDENTIALS),
            (403, K.DENIED),
            (404, K.DENIED),
            (408, K.TIMEOUT),
            (413, K.CLIENT),
            (424, K.UNAVAILABLE),
            (429, K.THROTTLED),
            (500, K.UNAVAILABLE),
            (502, K.UNAVAILABLE),
            (504, K.TIMEOUT),
        ):
            for name in ("", "BrandNewException"):
                self.assertIs(classify(status, name), kind, (status, name))
        self.assertIs(classify(200, "brandNewException"), K.BROKE)

    def test_validation(self) -> None:
        """What a ValidationException is about, by its message."""
        for message, kind in (
            ("Input is too long for requested model.", K.CONTEXT_WINDOW),
            (
                "The model returned the following errors: prompt is too long: 200049 tokens > "
                "200000 maximum",
                K.CONTEXT_WINDOW,
            ),
            (
                "input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000",
                K.CONTEXT_WINDOW,
            ),
            ("Output blocked by content filtering policy", K.CONTENT_POLICY),
            ("This request has been blocked by our content filters.", K.CONTENT_POLICY),
            ("The provided model identifier is invalid.", K.DENIED),
            (
                "Invocation of model ID x.y with on-demand throughput isn\u2019t supported.",
                K.DENIED,
            ),
            ("messages.0.content: Field required", K.CLIENT),
            ("", K.CLIENT),
        ):
            self.assertIs(classify(400, "ValidationException", message), kind, message)

    def test_denied(self) -> None:
        """Who is denied what: the account, its key, or what a client asked for besides."""
        for message, kind in (
            ("You don't have access to the model with the specified model ID.", K.DENIED),
            ("Authentication failed: Please make sure your API Key is valid.", K.BAD_CREDENTIALS),
            ("The guardrail identifier or version does not exist.", K.CLIENT),
            ("Access denied to s3://bucket/key", K.CLIENT),
        ):
            self.assertIs(classify(403, "AccessDeniedException", message), kind, message)
        self.assertIs(
            classify(404, "ResourceNotFoundException", "No such agent", takes_model=False),
            K.CLIENT,
        )

    def test_model_error(self) -> None:
        """What an endpoint of the account's own says of the request is the client's fault."""
        message = 'Received client error (400) from primary with message "bad"'
        self.assertIs(classify(424, "ModelErrorException", message), K.CLIENT)

    @given(st.integers(100, 599), st.text(), st.text())
    def test_anything(self, status: int, name: str, message: str) -> None:
        """Any answer is classified; an error is always a failure."""
        kind = classify(status, name, message)
        self.assertTrue(kind is not None or status < 400)


class RetryAfterTests(SynchronousTestCase):
    """How long AWS wants us to wait."""

    now = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT

    def test_values(self) -> None:
        """Seconds, milliseconds and dates; the longer one counts."""
        for headers, seconds in (
            ([], None),
            ([(b"Retry-After", b"7")], 7.0),
            ([(b"retry-after", b"0.5")], 0.5),
            ([(b"X-Amz-Retry-After", b"1500")], 1.5),
            ([(b"Retry-After", b"1"), (b"x-amz-retry-after", b"1500")], 1.5),
            ([(b"Retry-After", b"3"), (b"x-amz-retry-after", b"1500")], 3.0),
            ([(b"Retry-After", b"Sun, 06 Nov 1994 08:49:47 GMT")], 10.0),
            ([(b"Retry-After", b"Sun, 06 Nov 1994 08:49:27 GMT")], 0.0),
            ([(b"Retry-After", b"-5")], 0.0),
            ([(b"Retry-After", b"1e9")], 3600.0),
            ([(b"Retry-After", b"inf")], 3600.0),
            ([(b"Retry-After", b"nan")], None),
            ([(b"Retry-After", b"soon")], None),
            ([(b"Retry-After", b"soon"), (b"x-amz-retry-after", b"20")], 0.02),
            ([(b"Retry-After", b"\xff")], None),
        ):
            self.assertEqual(retry_after_s(headers, self.now), seconds, headers)

    @given(st.binary(), st.binary())
    def test_anything(self, told: bytes, exact: bytes) -> None:
        """Whatever a header holds, the wait has bounds."""
        headers = [(b"Retry-After", told), (b"x-amz-retry-after", exact)]
        wait_s = retry_after_s(headers, self.now)
        self.assertTrue(wait_s is None or 0.0 <= wait_s <= 3600.0, wait_s)


class _NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


class CircuitTests(SynchronousTestCase):
    """When a deployment is taken out, and comes back."""

    def circuit(self, rng: random.Random | None = None, **settings: object) -> Circuit:
        return Circuit(HealthSettings(**settings), rng or _NoJitter())  # type: ignore[arg-type]

    def failing(
        self, circuit: Circuit, kind: FailureKind, now: float, told_s: float | None = None
    ) -> None:
        """One attempt, which fails at once."""
        attempt = object()
        circuit.begin(attempt, now)
        circuit.failed(attempt, kind, now, told_s)

    def succeed(self, circuit: Circuit, now: float) -> None:
        trial = circuit.begin(object(), now)
        circuit.answered(trial, now)
        circuit.completed(trial, now)

    def test_at_once(self) -> None:
        """Throttling and a model that is not ready take out at once, for a while."""
        for kind in (K.THROTTLED, K.NOT_READY):
            circuit = self.circuit()
            self.succeed(circuit, 9.0)
            self.failing(circuit, kind, 10.0)
            self.assertIs(circuit.state, OPEN)
            self.assertEqual((circuit.until, circuit.since, circuit.why), (15.0, 10.0, kind))

    def test_allowed_fails(self) -> None:
        """Other failures have to be more than are allowed, within a minute."""
        for kind in (K.UNAVAILABLE, K.TIMEOUT, K.CONNECT, K.BROKE):
            circuit = self.circuit(allowed_fails=2)
            for now in (0.0, 10.0, 71.0, 72.0):
                self.failing(circuit, kind, now)
                self.assertIs(circuit.state, CLOSED, (kind, now))
            self.failing(circuit, kind, 73.0)
            self.assertIs(circuit.state, OPEN, kind)

    def test_none_allowed(self) -> None:
        """With allowed_fails 0 the first one takes it out."""
        circuit = self.circuit(allowed_fails=0)
        self.failing(circuit, K.UNAVAILABLE, 1.0)
        self.assertIs(circuit.state, OPEN)

    def test_rare(self) -> None:
        """A few failures among many answers never add up, unless that is asked for."""
        for share, state in ((0.5, CLOSED), (0.0, OPEN)):
            circuit = self.circuit(failed_share=share)
            for step in range(100):
                if step % 10:
                    self.succeed(circuit, step / 10)
                else:
                    self.failing(circuit, K.UNAVAILABLE, step / 10)
                    if circuit.state is OPEN:
                        break
            self.assertIs(circuit.state, state, share)

    def test_busy(self) -> None:
        """Four in a row take it out, however many went well before."""
        circuit = self.circuit()
        for step in range(5000):
            self.succeed(circuit, step / 100)
        for step in range(4):
            self.assertIs(circuit.state, CLOSED, step)
            self.failing(circuit, K.UNAVAILABLE, 50 + step / 100)
        self.assertIs(circuit.state, OPEN)

    def test_policy(self) -> None:
        """How many are allowed may be said of each kind, also of throttling."""
        circuit = self.circuit(
            allowed_fails=0, allowed_fails_policy={K.THROTTLED: 1, K.TIMEOUT: 2}
        )
        self.failing(circuit, K.THROTTLED, 1.0)
        self.failing(circuit, K.TIMEOUT, 2.0)
        self.assertIs(circuit.state, CLOSED)
        self.failing(circuit, K.TIMEOUT, 3.0)
        self.assertIs(circuit.state, OPEN)

    def test_configured(self) -> None:
        """A fault of the configuration shows at once, but no client can feign it."""
        for kind in (K.DENIED, K.BAD_CREDENTIALS):
            circuit = self.circuit()
            self.failing(circuit, kind, 1.0)
            self.assertIs(circuit.state, OPEN, kind)
            circuit = self.circuit()
            self.succeed(circuit, 1.0)
            for now in (2.0, 3.0, 4.0):
                self.failing(circuit, kind, now)
                self.assertIs(circuit.state, CLOSED, kind)
            self.failing(circuit, kind, 5.0)
            self.assertIs(circuit.state, OPEN, kind)

    def test_disabled(self) -> None:
        """With disable_cooldowns nothing is taken out."""
        circuit = self.circuit(disable_cooldowns=True)
        for kind in (*[K.UNAVAILABLE] * 10, K.THROTTLED, K.DENIED):
            self.failing(circuit, kind, 1.0)
        self.assertIs(circuit.state, CLOSED)

    def test_told(self) -> None:
        """It cools for as long as AWS asked, even if that is longer than any other."""
        for told_s, until in ((0.5, 10.5), (300.0, 310.0), (0.0, 15.0)):
            circuit = self.circuit()
            self.failing(circuit, K.THROTTLED, 10.0, told_s)
            self.assertEqual(circuit.until, until)

    def test_told_later(self) -> None:
        """What was under way when it was taken out may still say that it takes longer."""
        circuit = self.circuit()
        late = object()
        circuit.begin(late, 9.0)
        self.failing(circuit, K.THROTTLED, 10.0)
        circuit.failed(late, K.THROTTLED, 11.0, None)
        self.assertEqual(circuit.until, 15.0)
        circuit.failed(late, K.THROTTLED, 11.0, 30.0)
        self.assertEqual(circuit.until, 41.0)

    def test_grows(self) -> None:
        """It cools twice as long after each probe that fails, to a limit."""
        circuit = self.circuit()
        now, waits = 0.0, []
        self.failing(circuit, K.THROTTLED, now)
        for _ in range(6):
            waits.append(circuit.until - now)
            now = circuit.until
            self.failing(circuit, K.THROTTLED, now)
        self.assertEqual(waits, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0])

    def test_jitter(self) -> None:
        """Never shorter, at most a fifth longer, and not always the same."""
        waits = set()
        for seed in range(50):
            circuit = self.circuit(random.Random(seed))
            self.failing(circuit, K.THROTTLED, 0.0)
            waits.add(circuit.until)
        self.assertTrue(all(5.0 <= wait <= 6.0 for wait in waits), waits)
        self.assertGreater(len(waits), 40)

    def test_probe(self) -> None:
        """When it has cooled one request may go, and if that is answered, all."""
        circuit = self.circuit()
        self.failing(circuit, K.THROTTLED, 0.0)
        trial = circuit.begin(object(), 5.0)
        self.assertTrue(trial)
        self.assertIs(circuit.state, HALF_OPEN)
        self.assertGreater(circuit.until, 5.0)
        circuit.answered(trial, 5.1)
        self.assertIs(circuit.state, CLOSED)
        self.assertEqual((circuit.until, circuit.since, circuit.why), (IN_ROTATION, 5.1, None))

    def test_probe_of_what_broke(self) -> None:
        """Where answers broke off, a probe has to be whole."""
        circuit = self.circuit(allowed_fails=0)
        self.failing(circuit, K.BROKE, 0.0)
        trial = circuit.begin(object(), 5.0)
        circuit.answered(trial, 5.1)
        self.assertIs(circuit.state, HALF_OPEN)
        circuit.completed(trial, 5.2)
        self.assertIs(circuit.state, CLOSED)

    def test_probe_says_nothing(self) -> None:
        """After a client's mistake the next request may probe; after one left, later."""
        circuit = self.circuit()
        self.failing(circuit, K.THROTTLED, 0.0)
        probe = object()
        circuit.begin(probe, 5.0)
        circuit.inconclusive(probe, 5.5)
        self.assertEqual((circuit.state, circuit.until), (OPEN, 5.5))
        circuit.begin(probe, 6.0)
        circuit.abandoned(probe)
        self.assertEqual((circuit.state, circuit.until), (OPEN, 11.0))

    def test_probe_hangs(self) -> None:
        """Another probe may go after a cooldown; the first may still end the outage."""
        circuit = self.circuit()
        self.failing(circuit, K.THROTTLED, 0.0)
        first, second = object(), object()
        trial = circuit.begin(first, 5.0)
        self.assertEqual(circuit.until, 10.0)
        circuit.begin(second, 10.0)
        circuit.failed(first, K.TIMEOUT, 11.0)
        self.assertIs(circuit.state, HALF_OPEN)
        circuit.answered(trial, 12.0)
        self.assertIs(circuit.state, CLOSED)

    def test_probation(self) -> None:
        """Soon after it has come back one failure takes it out, for longer."""
        circuit = self.circuit()
        self.failing(circuit, K.THROTTLED, 0.0)
        self.succeed(circuit, 5.0)
        self.failing(circuit, K.UNAVAILABLE, 6.0)
        self.assertEqual((circuit.state, circuit.until), (OPEN, 16.0))
        self.succeed(circuit, 16.0)
        self.failing(circuit, K.UNAVAILABLE, 27.0)
        self.assertIs(circuit.state, CLOSED)
        self.failing(circuit, K.THROTTLED, 28.0)
        self.assertEqual(circuit.until, 33.0)

    def test_try_in_need(self) -> None:
        """What is tried for lack of a better one may end an outage, not prolong it."""
        circuit = self.circuit()
        self.failing(circuit, K.THROTTLED, 0.0)
        self.failing(circuit, K.UNAVAILABLE, 1.0)
        self.assertEqual(circuit.until, 5.0)
        self.succeed(circuit, 2.0)
        self.assertIs(circuit.state, CLOSED)

    def test_late_success(self) -> None:
        """What was begun before an outage does not end it, nor what was tried in another."""
        circuit = self.circuit()
        early = circuit.begin(object(), 0.0)
        self.failing(circuit, K.THROTTLED, 1.0)
        circuit.answered(early, 2.0)
        self.assertIs(circuit.state, OPEN)
        tried = circuit.begin(object(), 2.0)
        self.succeed(circuit, 6.0)
        self.failing(circuit, K.THROTTLED, 7.0)
        circuit.answered(tried, 8.0)
        self.assertIs(circuit.state, OPEN)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("begin", "answer", "complete", "client", "leave", *K)),
                st.integers(0, 5),
                st.floats(0, 20),
                st.none() | st.floats(0, 3600),
            )
        ),
        st.integers(0, 5),
    )
    def test_any_events(
        self,
        events: list[tuple[str | FailureKind, int, float, float | None]],
        allowed: int,
    ) -> None:
        """Whatever happens, it is probed again within the longest wait."""
        circuit = self.circuit(random.Random(0), allowed_fails=allowed)
        now, trials = 0.0, [0] * 6
        attempts = [object() for _ in trials]
        for event, which, passed, told_s in events:
            now += passed
            attempt = attempts[which]
            if event == "begin":
                trials[which] = circuit.begin(attempt, now)
            elif event == "answer":
                circuit.answered(trials[which], now)
            elif event == "complete":
                circuit.completed(trials[which], now)
            elif event == "client":
                circuit.inconclusive(attempt, now)
            elif event == "leave":
                circuit.abandoned(attempt)
            else:
                assert isinstance(event, FailureKind)
                circuit.failed(attempt, event, now, told_s)
            closed = circuit.state is CLOSED
            self.assertEqual(closed, circuit.until == IN_ROTATION)
            self.assertEqual(closed, circuit.why is None)
            self.assertLessEqual(circuit.until - now, 3600 * 1.2 + 1e-6)


class PaceTests(SynchronousTestCase):
    """What to expect of a deployment's next answer."""

    def pace(self, *times: float, every: float = 0.1, place: int = 0) -> tuple[Pace, float]:
        """One that answered after so many seconds, and the time it is now."""
        now = 1000.0
        pace = Pace(now)
        for seconds in times:
            now += every
            pace.begin(now)
            pace.end(now)
            pace.took(seconds, place, True, now)
        return pace, now

    def test_mean(self) -> None:
        """Times that are alike have a mean."""
        pace, now = self.pace(*[0.1, 0.12, 0.08] * 20)
        self.assertAlmostEqual(pace.expected(0, now), 0.1, 2)
        self.assertAlmostEqual(pace.expected(0, now + 60), 0.1, 2)

    def test_unknown(self) -> None:
        """Nothing is expected of a new one; with requests that wait, a second and more each."""
        pace = Pace(1000.0)
        self.assertEqual(pace.expected(0, 1000.0), 0.0)
        pace.begin(1000.0)
        pace.begin(1001.0)
        self.assertEqual(pace.expected(2, 1002.0), 2 + 2 + 1)

    def test_peak(self) -> None:
        """One answer that is much slower counts at once, one that is faster does not."""
        slow, now = self.pace(*[0.1] * 300, 1.0)
        self.assertGreater(slow.expected(0, now), 0.25)
        fast, now = self.pace(*[0.1] * 300, 0.01)
        self.assertGreater(fast.expected(0, now), 0.09)

    def test_sparse(self) -> None:
        """After a pause the next answer counts as much as all before."""
        pace, now = self.pace(*[1.0] * 100)
        pace.took(0.1, 0, True, now + 10)
        self.assertLess(pace.expected(0, now + 10), 0.75)

    def test_queue(self) -> None:
        """More that wait mean a longer wait, in proportion to how many did before."""
        pace, now = self.pace(*[0.1] * 50, place=6)
        self.assertAlmostEqual(pace.expected(6, now), 0.1)
        self.assertAlmostEqual(pace.expected(16, now), 0.2)
        self.assertAlmostEqual(pace.expected(1, now), 0.05)

    def test_hangs(self) -> None:
        """What is waited for too long counts before it is answered."""
        pace, now = self.pace(*[0.1] * 50)
        for _ in range(3):
            pace.begin(now)
        self.assertAlmostEqual(pace.expected(0, now + 0.09), 0.1, 2)
        self.assertGreater(pace.expected(0, now + 1), 0.2)
        self.assertGreater(pace.expected(0, now + 5), 5)

    def test_in_vain(self) -> None:
        """What was waited for in vain makes the expected time longer."""
        pace, now = self.pace(*[0.1] * 50)
        pace.took(30.0, 0, False, now)
        self.assertGreater(pace.expected(0, now), 1.0)
        never = Pace(1000.0)
        never.took(30.0, 0, False, 1030.0)
        self.assertEqual(never.expected(0, 1030.0), 30.0)

    def test_last_ten(self) -> None:
        """The mean of the last ten, for latency-based-routing."""
        pace, _ = self.pace(*[9.0] * 5, *[1.0] * 9, 2.0)
        self.assertAlmostEqual(pace.last_ten_s, 1.1)

    @given(
        st.lists(
            st.tuples(st.floats(0, 100), st.integers(0, 1000), st.booleans(), st.floats(-5, 1e6))
        )
    )
    def test_any_times(self, times: list[tuple[float, int, bool, float]]) -> None:
        """It is a number, and not negative, also when the clock was set back."""
        pace, now = Pace(0.0), 0.0
        for seconds, place, answered, passed in times:
            now += passed
            pace.begin(now - seconds)
            pace.end(now - seconds)
            pace.took(seconds, place, answered, now)
            expected = pace.expected(place, now)
            self.assertTrue(0 <= expected < math.inf, expected)

    def test_p95(self) -> None:
        """About one in twenty takes longer, whatever the times are like."""
        rng = random.Random(5)
        for draw in (
            lambda: rng.uniform(0.1, 0.3),
            lambda: rng.expovariate(2.0),
            lambda: rng.lognormvariate(0, 1),
        ):
            pace = Pace(0.0)
            longer = 0
            for number in range(20_000):
                seconds = draw()
                p95_s = pace.p95_s
                if number < 20:
                    self.assertIsNone(p95_s)
                if number >= 1000:
                    assert p95_s is not None
                    longer += seconds > p95_s
                pace.took(seconds, 0, True, float(number))
            self.assertTrue(0.04 < longer / 19_000 < 0.06, longer / 19_000)
