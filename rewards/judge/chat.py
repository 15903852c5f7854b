"""Asking a model behind an OpenAI-compatible endpoint, once per distinct question.

An answer that could be read is kept under a hash of everything that it depends on (model, revision, messages with the media's contents,
decoding), in memory and, where a folder is given, on disk; so a run that is resumed, or another that asks the same, does not pay again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrl.errors import UserError
from mmrl.rewards.judge.completion import JudgeError, read, shown
from mmrl.rewards.judge.endpoint import Endpoint
from mmrl.rewards.judge.flights import Flights
from mmrl.rewards.judge.identity import Identity, served, who_of
from mmrl.rewards.judge.kept import Kept, Reply
from mmrl.rewards.remote.connection import RETRIED, Connections, asked_to_wait, pause
from mmrl.rewards.remote.meter import Meter

LONGEST_WAIT = 600.0
"""Seconds: a judge that wants to be asked again later than that is not."""
MOST_BYTES = 16 << 20
"""An answer that is longer is none."""
HELLO = "Answer with one word: yes."
"""The question that only asks who answers."""

Readable = Callable[[Reply], bool]
"""Whether the reward can read a reply; what it cannot is not kept."""


class Chat:
    """A client of one endpoint; may be used from several threads. Raises UserError for an endpoint that may not be asked.

    All live replies must say that they come from the judge that was met first (`meet`); kept ones of another judge are asked anew.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.token = endpoint.token()
        self.connections = Connections(endpoint.concurrency, "judge", self.token)
        self.kept = Kept(endpoint.cache)
        self.identity = Identity(endpoint.fingerprint)
        self.listed = ""
        self.flights = Flights()
        self.meter = Meter()

    @property
    def asked(self) -> int:
        """Questions that went over the wire, those asked again included."""
        return self.meter.total["asked"]

    def stats(self) -> dict[str, float]:
        """Since the last call: `asked` (over the wire, those asked again included), `retries` among them, `cached` (answered from
        what is kept, or by the answer to the same question at the same time), and the seconds from the first try to the answer as
        `latency_p50`, `latency_p95`."""
        return self.meter.take("asked", "retries", "cached")

    def stop(self) -> None:
        """Nobody waits for answers any more: what is asked, tried again, or would be asked, is a JudgeError at once."""
        self.connections.give_up()

    def meet(self) -> str:
        """Ask who answers, before anything else: what the server's list of models says of the one that is asked (nothing where it has no list,
        or another name in it), and what the reply to one token's question says of itself. Raises UserError where there is no answer."""
        try:
            status, listed = self._tried("GET", "models", counted=False)
            self.listed = served(listed, self.endpoint.model) if status == 200 else ""
            hello = [{"role": "user", "content": [{"type": "text", "text": HELLO}]}]
            status, said = self._tried(
                "POST", "chat/completions", counted=False, json=self._body(hello) | {"max_tokens": 1}
            )
        except JudgeError as error:
            raise UserError(f"judge {error}; start it, or correct endpoint.url") from error
        try:
            if status != 200:
                raise ValueError(status)
            completion = json.loads(said)
            _ = completion["choices"]
            self.identity.take(who_of(completion))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"judge {self.endpoint.url} answers a first question with {status}: {shown(said)}; correct endpoint.url or endpoint.model"
            ) from error
        return self.said()

    def said(self) -> str:
        """What the server said of who answers; the same for the same judge."""
        return "; ".join(filter(None, (self.listed, self.identity.name())))

    def ask_all(
        self, questions: Sequence[list[dict[str, Any]]], readable: Sequence[Readable], **options: Any
    ) -> list[Reply | JudgeError]:
        """A reply, or what went wrong, for the messages of each question, equal ones asked once; see `ask`."""

        def one(body: dict[str, Any], read: Readable) -> Reply | JudgeError:
            try:
                return self._once(body, read)
            except JudgeError as error:
                return error

        bodies = [self._body(messages, **options) for messages in questions]
        keys = [self._key(body) for body in bodies]
        distinct: dict[str, int] = {}
        for at, key in enumerate(keys):
            distinct.setdefault(key, at)
        jobs = {key: self.connections.pool.submit(one, bodies[at], readable[at]) for key, at in distinct.items()}
        try:
            found = {key: job.result() for key, job in jobs.items()}
        except BaseException as error:
            for job in jobs.values():
                job.cancel()
            if not isinstance(error, Exception):  # Ctrl-C: the threads must not go on asking
                self.stop()
            raise
        if len(keys) > len(jobs):
            self.meter.add("cached", len(keys) - len(jobs))
        return [found[key] for key in keys]

    def ask(self, messages: list[dict[str, Any]], readable: Readable, **options: Any) -> Reply:
        """The reply to `messages` (their media as `picture` gives them), in the form of a JSON `schema`, or with the log-probs of
        the `top_logprobs` likeliest first tokens. It is kept if it is `readable`. Raises JudgeError when there is none."""
        return self._once(self._body(messages, **options), readable)

    def forget(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same question in other words: for the one re-ask after an unreadable answer. No message more, as templates of chats want
        roles to take turns."""
        *before, last = messages
        more = {"type": "text", "text": "Your answer could not be read. Keep to the asked form."}
        return [*before, {**last, "content": [*last["content"], more]}]

    def _body(
        self, messages: list[dict[str, Any]], schema: Mapping[str, Any] | None = None, top_logprobs: int = 0
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": self.endpoint.temperature,
            "max_tokens": 1 if top_logprobs else self.endpoint.max_tokens,
            "seed": self.endpoint.seed,
        }
        if schema is not None:
            named = {"name": "verdict", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        return body

    def _key(self, body: dict[str, Any]) -> str:
        return hashlib.sha256(
            json.dumps([self.endpoint.revision, self.listed, body], sort_keys=True).encode()
        ).hexdigest()

    def _once(self, body: dict[str, Any], readable: Readable) -> Reply:
        key = self._key(body)
        reply, own = self.flights.once(key, lambda: self._reply(key, body, readable))
        if not own:
            self.meter.add("cached")
        found: Reply = reply
        return found

    def _reply(self, key: str, body: dict[str, Any], readable: Readable) -> Reply:
        """The kept reply if it is of the judge that answers now, else a live one."""
        known = self.kept.get(key)
        if known is not None and readable(known) and self.identity.differs(known.who) is None:
            self.meter.add("cached")
            return known
        reply = self._live(body)
        if readable(reply):
            self.kept.put(key, reply)
        return reply

    def _live(self, body: dict[str, Any]) -> Reply:
        began = time.monotonic()
        status, completion = self._tried("POST", "chat/completions", json=body)
        if status != 200:
            raise JudgeError(f"{self.endpoint.url}: {status}: {shown(completion)}")
        self.meter.took(time.monotonic() - began)
        reply = read(completion, first_token="top_logprobs" in body)
        change = self.identity.take(reply.who)
        if change is not None:
            raise JudgeError(
                f"{self.endpoint.url}: {change}; let the server keep to one, or begin anew with another revision"
            )
        return reply

    def _tried(self, method: str, path: str, counted: bool = True, **content: Any) -> tuple[int, bytes]:
        """Status and body of the response after as many tries as what may pass takes. Raises JudgeError without one."""
        httpx, stop = self.connections.httpx, self.connections.stop
        problem, wait, started = "not asked", 0.0, 0.0
        judge, outage = f"judge {self.endpoint.url}", self.connections.outage
        for number in range(1, self.endpoint.tries + 1):
            if wait > LONGEST_WAIT:
                raise JudgeError(f"{self.endpoint.url}: {problem}, and it asks to come again in {wait:.0f} seconds")
            if number > 1 and not stop.is_set():
                outage.failed(
                    judge, problem, started, wait, f"{self.endpoint.tries - number + 1} more tries of this question"
                )
            if stop.wait(wait):
                raise JudgeError(f"{self.endpoint.url}: {problem} (given up after {number - 1} tries)")
            if counted:
                self.meter.add("asked")
                if number > 1:
                    self.meter.add("retries")
            started = time.monotonic()
            try:
                response, body = self._try(method, f"{self.endpoint.url}/{path}", **content)
            except httpx.RequestError as error:
                problem, wait = f"{type(error).__name__}: {error}", pause(number, self.endpoint.backoff)
                continue
            if response.status_code not in RETRIED:
                outage.answered(judge)
                return response.status_code, body
            problem = f"{response.status_code} {response.reason_phrase}"
            wait = pause(number, self.endpoint.backoff, asked_to_wait(response.headers.get("retry-after")))
        raise JudgeError(f"{self.endpoint.url}: {problem} (after {self.endpoint.tries} tries)")

    def _try(self, method: str, url: str, **content: Any) -> tuple[Any, bytes]:
        """One try: the response, and its body as it came, not unpacked and without the token; over after `timeout` also where it comes in drops."""
        httpx, most = self.connections.httpx, self.endpoint.timeout
        timeout, end = httpx.Timeout(most, connect=min(most, 10.0)), time.monotonic() + most
        with self.connections.client.stream(method, url, timeout=timeout, **content) as response:
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > MOST_BYTES:
                    raise JudgeError(f"{self.endpoint.url}: an answer of more than {MOST_BYTES} bytes")
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"the answer was not there within {most:g} seconds")
        return response, bytes(body.replace(self.token.encode(), b"***") if self.token else body)
