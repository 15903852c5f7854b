"""The client of a reward server against answers that a real server does not give, and what it shares with judges."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmrl.errors import UserError
from mmrl.reward import Failed, Graded, RewardSet
from mmrl.rewards.remote import asking, outage
from mmrl.rewards.remote.client import RemoteGroupReward, RemoteReward
from mmrl.rewards.remote.connection import LONGEST_PAUSE, asked_to_wait, base_url, bearer, pause
from mmrl.rewards.remote.contract import Result, ScoreRequest, ScoreResponse
from mmrl.rewards.remote.meter import Meter
from mmrl.rewards.remote.pack import pack
from mmrl.rollout import OK, Prompt, Sample

MODEL = {"name": "it", "revision": "1", "sha256": "0"}
FACTS = {"model": MODEL, "scope": "pointwise", "needs": [], "range": [0, 1], "higher_is_better": True, "deterministic": True,
         "licence": "none"}  # fmt: skip
CPU = torch.device("cpu")
Answer = Callable[[dict[str, Any]], Any]


class Stub:
    """A server whose answers come from a function of the request: a dictionary, a `(status, headers)`, bytes, or a function that
    writes to the connection."""

    def __init__(
        self,
        answer: Answer,
        max_bytes: int = 1000,
        max_batch: int = 4,
        told: Callable[[Any], None] | None = None,
        **facts: Any,
    ) -> None:
        """`told` writes what `/v1/info` says."""
        self.bodies: list[dict[str, Any]] = []
        self.lengths: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                info = {
                    "protocol": "mmrl-reward/1",
                    "rewards": {"it": FACTS | facts},
                    "max_batch": max_batch,
                    "max_bytes": max_bytes,
                    "new": 1,
                }
                if told is None:
                    return self.say(200, json.dumps(info).encode(), {})
                told(self)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.lengths.append(length)
                body = json.loads(self.rfile.read(length))
                outer.bodies.append(body)
                found = answer(body)
                if callable(found):
                    found(self)
                elif isinstance(found, tuple):
                    self.say(found[0], b"{}", found[1])
                else:
                    self.say(200, found if isinstance(found, bytes) else json.dumps(found).encode(), {})

            def say(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


Serve = Callable[..., tuple[Stub, RemoteReward]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    made: list[Stub] = []

    def start(answer: Answer, facts: dict[str, Any] | None = None, kind: Any = RemoteReward, **options: Any) -> Any:
        made.append(Stub(answer, **(facts or {})))
        url = f"http://127.0.0.1:{made[-1].server.server_port}"
        reward = kind(url=url, reward="it", **({"backoff": 0.01, "deadline": 5.0} | options))
        reward.setup(CPU)
        return made[-1], reward

    yield start
    for one in made:
        one.close()


def right(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    results = [{"id": sample["id"], "status": "ok", "score": 0.5} for sample in body["samples"]]
    return {
        "protocol": "mmrl-reward/1",
        "request_id": body["request_id"],
        "model": MODEL,
        "results": results,
        "timing_ms": 1,
    } | more


def texts(count: int) -> list[Sample]:
    return [Sample(Prompt(f"p{i}", "x"), "y") for i in range(count)]


def test_requests_are_no_larger_than_the_server_takes_and_say_only_what_is_there(serve: Serve) -> None:
    stub, reward = serve(right, batch_size=32)
    assert reward.score(texts(9)) == [0.5] * 9
    assert sorted(len(body["samples"]) for body in stub.bodies) == [1, 4, 4]
    body = min(stub.bodies, key=lambda body: len(body["samples"]))
    assert body.keys() == {
        "protocol",
        "request_id",
        "reward",
        "samples",
    }  # what was added later is sent only where it says something
    assert body["samples"][0].keys() == {"id", "prompt", "prompt_id", "response"}


def test_answers_may_say_more_and_their_words_are_kept(serve: Serve) -> None:
    def more(body: dict[str, Any]) -> dict[str, Any]:
        found = right(body, new=1)
        found["results"][0] |= {"components": {"a": 1.0}, "detail": {"how": "a word", "new": 2}}
        return found

    _, reward = serve(more)
    first, second = reward.score(texts(2))
    assert isinstance(first, Graded) and (first, first.how) == (0.5, "a word") and not isinstance(second, Graded)


def test_a_score_out_of_range_is_a_failure_of_its_sample_alone(serve: Serve) -> None:
    def high(body: dict[str, Any]) -> dict[str, Any]:
        found = right(body)
        found["results"][1]["score"] = 1.5
        return found

    stub, reward = serve(high)
    found = reward.score(texts(3))
    assert found[0] == found[2] == 0.5 and "score 1.5 is outside 0" in found[1].reason and len(stub.bodies) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again_by_the_same_id(serve: Serve, status: int) -> None:
    stub, reward = serve(lambda body: right(body) if len(stub.bodies) > 2 else (status, {}))
    assert reward.score(texts(1)) == [0.5]
    assert len({body["request_id"] for body in stub.bodies}) == 1 and len(stub.bodies) == 3 and reward.retries == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 302])
def test_what_does_not_pass_is_not(serve: Serve, status: int) -> None:
    stub, reward = serve(lambda body: (status, {"Location": "http://127.0.0.1:1/"}))
    (found,) = reward.score(texts(1))
    assert isinstance(found, Failed) and str(status) in found.reason and len(stub.bodies) == 1


def test_another_model_is_a_failure(serve: Serve) -> None:
    stub, reward = serve(lambda body: right(body, model=MODEL | {"sha256": "1"}))
    scores = RewardSet({"it": (reward, 1.0)}).score(texts(2))
    assert not (scores.status == OK).any() and "another model" in scores.messages[0] and len(stub.bodies) == 1


def test_an_answer_in_drops_ends_with_the_deadline(serve: Serve) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    stub, reward = serve(lambda body: drip, deadline=0.5)
    (found,) = reward.score(texts(1))
    assert isinstance(found, Failed) and "too slowly" in found.reason and len(stub.bodies) == 1


def test_an_answer_without_end_is_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST_BYTES", 1000)
    stub, reward = serve(lambda body: b" " * 2000)
    (found,) = reward.score(texts(1))
    assert isinstance(found, Failed) and "more than 1000 bytes" in found.reason and len(stub.bodies) == 1


def test_a_server_is_left_alone_as_long_as_it_asks_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float | None] = []

    def counted(tries: int, backoff: float, asked: float | None = None) -> float:
        seen.append(asked)
        return 0.0

    monkeypatch.setattr(asking, "pause", counted)
    headers = [{"Retry-After": "3"}, {}, {"Retry-After": "0"}]
    stub, reward = serve(lambda body: (429, headers[len(stub.bodies) - 1]) if len(stub.bodies) < 4 else right(body))
    assert reward.score(texts(1)) == [0.5] and seen == [3.0, None, 0.0]


def test_a_server_that_wants_to_be_asked_after_the_deadline_is_not(serve: Serve) -> None:
    stub, reward = serve(lambda body: (503, {"Retry-After": "86400"}))
    (found,) = reward.score(texts(1))
    assert "503" in found.reason and "after 1 tries" in found.reason and len(stub.bodies) == 1


def test_pauses_double_up_to_a_bound_and_never_undercut_what_was_asked_for() -> None:
    for tries, whole in ((1, 0.5), (2, 1.0), (5, 8.0), (9, LONGEST_PAUSE), (5000, LONGEST_PAUSE)):
        found = [pause(tries, 0.5) for _ in range(50)]
        assert whole / 2 <= min(found) < max(found) <= whole
    assert pause(1, 0.5, 7.0) == 7.0 and pause(3, 0.5, 0.0) >= 1.0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert asked_to_wait(None) is None and asked_to_wait("") is None and asked_to_wait("soon") is None
    assert asked_to_wait("12") == 12.0 and asked_to_wait("0") == 0.0
    assert asked_to_wait("²") is None and asked_to_wait("-1") is None
    assert asked_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    later = asked_to_wait("Wed, 21 Oct 2199 07:28:00 GMT")
    assert later is not None and later > 1e9


def test_nobody_goes_on_asking_after_an_interruption(serve: Serve) -> None:
    asked = threading.Event()

    def busy(body: dict[str, Any]) -> Any:
        asked.set()
        return 503, {}

    _, reward = serve(busy, deadline=3000.0, backoff=1000.0)
    jobs: list[Any] = []
    pool = reward._connections.pool
    submit = pool.submit

    def interrupted(function: Any, part: Any) -> Any:
        jobs.append(submit(function, part))

        class Job:
            def result(self) -> Any:
                asked.wait(10)
                raise KeyboardInterrupt

            def cancel(self) -> None:
                jobs[-1].cancel()

        return Job()

    pool.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        reward.score(texts(1))
    assert "given up" in jobs[0].result(timeout=30)[0].reason


def test_the_score_after_an_interruption_asks_again_as_before(serve: Serve) -> None:
    stub, reward = serve(lambda body: right(body) if len(stub.bodies) % 3 == 0 else (503, {}))
    pool = reward._connections.pool
    submit = pool.submit

    class Job:
        def result(self) -> Any:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            pass

    pool.submit = lambda *given: Job()
    with pytest.raises(KeyboardInterrupt):
        reward.score(texts(1))
    assert reward._connections.stop.is_set()
    pool.submit = submit
    assert reward.score(texts(1)) == [0.5] and reward.retries == 2 and not reward._connections.stop.is_set()


def test_a_run_that_ends_early_stops_what_waits_and_no_later_score(serve: Serve) -> None:
    asked, well = threading.Event(), threading.Event()

    def busy(body: dict[str, Any]) -> Any:
        asked.set()
        return right(body) if well.is_set() else (503, {})

    stub, reward = serve(busy, deadline=3000.0, backoff=1000.0, concurrency=1, batch_size=1)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(reward.score(texts(2))), daemon=True)
    thread.start()
    assert asked.wait(30)
    reward.stop()
    thread.join(30)
    assert not thread.is_alive() and "given up after 1 tries" in found[0].reason
    assert "given up before it was asked" in found[1].reason and len(stub.bodies) == 1
    well.set()
    assert reward.score(texts(1)) == [0.5]


def test_a_server_that_hangs_does_not_keep_what_is_stopped(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    asked, end = threading.Event(), threading.Event()

    def hangs(body: dict[str, Any]) -> Any:
        asked.set()
        assert end.wait(60)
        return right(body)

    _, reward = serve(hangs, deadline=3000.0, read_timeout=3000.0)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(reward.score(texts(1))), daemon=True)
    thread.start()
    assert asked.wait(30)
    reward.stop()
    thread.join(30)
    end.set()
    assert not thread.is_alive() and "given up after 1 tries" in found[0].reason and not caplog.records
    assert reward.score(texts(1)) == [0.5]


def test_a_score_that_begins_while_others_are_stopped_is_stopped_as_well(serve: Serve) -> None:
    _, reward = serve(right)
    with reward._connections.waiting.begin() as stop:
        reward.stop()
        assert stop.is_set() and "before it was asked" in reward.score(texts(1))[0].reason
    assert reward.score(texts(1)) == [0.5] and stop.is_set()  # those that were stopped stay so
    RemoteReward(reward="it").stop()  # nothing is asked before setup


def test_an_outage_is_told_in_one_line_and_its_end_in_another(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "QUIET", 0.0)
    answers = [503] * 6
    _, reward = serve(lambda body: (answers.pop(), {}) if answers else right(body), batch_size=1, concurrency=1)
    assert reward.score(texts(3)) == [0.5] * 3 and reward.score(texts(1)) == [0.5]
    away, back = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(
        rf"reward server {reward.url} gives no usable answer for \d+ s \(503 Service Unavailable\); trying for up to \d+ s more",
        away,
    )
    assert re.fullmatch(rf"reward server {reward.url} answers again, after \d+ s", back)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    answers.append(503)
    assert reward.score(texts(1)) == [0.5] and len(caplog.records) == 4  # another outage


def test_of_a_short_outage_nothing_is_said(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    answers = [503] * 3
    _, reward = serve(lambda body: (answers.pop(), {}) if answers else right(body))
    assert reward.score(texts(1)) == [0.5] and reward.retries == 3 and not caplog.records


def test_an_outage_lasts_from_the_first_try_or_the_last_answer_on(caplog: pytest.LogCaptureFixture) -> None:
    seen = outage.Outage()
    now = time.monotonic()
    seen.failed("it", "ReadTimeout", now - 1000, 1, "on")
    assert re.match(r"it gives no usable answer for 100\d s", caplog.messages[-1])
    seen.answered("it")
    seen.failed("it", "ReadTimeout", now - 1000, 1, "on")  # begun before the answer to another request
    assert len(caplog.messages) == 2
    seen.failed("it", "429", now, 60, "on")  # the next try is far away
    assert re.match(r"it gives no usable answer for \d s \(429\)", caplog.messages[-1]) and len(caplog.messages) == 3


def test_waiting_for_a_server_when_the_run_starts_is_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def loading(handler: Any) -> None:
        handler.say(503, b"{}", {})

    monkeypatch.setattr(outage, "QUIET", 0.0)
    with pytest.raises(UserError, match=r"reward server .*: 503 Service Unavailable; start it with"):
        serve(right, {"told": loading}, patience=0.6)
    (line,) = caplog.messages
    assert re.search(r"gives no usable answer for 0 s \(503 Service Unavailable\); waiting for up to [01] s more", line)


@pytest.mark.parametrize("body", [b"<html>", b'{"a": 1} {"a": 2}'])
def test_what_is_not_json_is_said_to_come_from_the_server(serve: Serve, body: bytes) -> None:
    _, reward = serve(lambda _: body, backoff=1000.0)
    assert f"the {len(body)} bytes that the server sent are not one JSON object (" in reward.score(texts(1))[0].reason


HALF = "bad \ud83d"


@pytest.mark.parametrize(
    "bad",
    [
        Sample(Prompt("q", "x", target=HALF), "y"),
        Sample(Prompt("q", "x", target={"a": [HALF]}), "y"),
        Sample(Prompt("q", "x", meta={"a": HALF}), "y"),
        Sample(Prompt("q", "x", meta={HALF: 1}), "y"),
        Sample(Prompt("q", HALF), "y"),
        Sample(Prompt(HALF, "x"), "y"),
        Sample(Prompt("q", "x"), HALF),
        Sample(Prompt("q", "x"), "y", meta={"a": HALF}),
    ],
)
def test_half_a_surrogate_pair_is_a_failure_of_its_sample_alone(serve: Serve, bad: Sample) -> None:
    stub, reward = serve(lambda body: right(body) if len(stub.bodies) > 2 else (503, {}))
    good = texts(2)
    found = reward.score([good[0], bad, good[1]])
    assert found[0] == found[2] == 0.5 and reward.retries == 2  # retries go on
    assert isinstance(found[1], Failed) and "\\ud83d" in found[1].reason and "UTF-8" in found[1].reason
    assert found[1].reason.encode()  # it can be written to a log
    assert [len(body["samples"]) for body in stub.bodies] == [2, 2, 2]


def test_whatever_goes_wrong_in_a_request_is_a_failure_of_its_samples_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reward = serve(right, batch_size=2)
    content = asking.content

    def broken(request: ScoreRequest, *rest: Any) -> Any:
        if request.samples[0].prompt_id == "p2":
            raise RuntimeError("something else")
        return content(request, *rest)

    monkeypatch.setattr(asking, "content", broken)
    found = reward.score(texts(5))
    assert [found[0], found[1], found[4]] == [0.5] * 3 and not reward._connections.stop.is_set()
    assert all(isinstance(one, Failed) and "RuntimeError: something else" in one.reason for one in found[2:4])


def test_requests_are_no_more_bytes_than_the_server_takes(serve: Serve) -> None:
    stub, reward = serve(right, {"max_bytes": 3000, "max_batch": 64}, batch_size=32)
    lengths = [10, 900, 900, 900, 2500, 10, 1400, 1400, 0, 0, 2000]
    given = [Sample(Prompt(f"p{i}", "x"), "é" * (length // 2)) for i, length in enumerate(lengths)]
    assert reward.score(given) == [0.5] * len(given)
    assert max(stub.lengths) <= 3000 and 4 <= len(stub.bodies) <= 6
    assert [one["prompt_id"] for body in stub.bodies for one in body["samples"]] == [f"p{i}" for i in range(11)]


@pytest.mark.parametrize("multipart", [False, True])
def test_the_size_of_a_request_is_known_before_it_is_made(multipart: bool) -> None:
    rng = np.random.default_rng(0)
    given = [
        Sample(Prompt(f"p{i}", 'x "é" \n', target={"a": [i]}), "y", images=(rng.integers(0, 255, (40, 30, 3), np.uint8),) * (1 + i),
               video=np.zeros((3, 8, 8, 3), np.uint8), meta={"fps": 4.0})
        for i in range(3)
    ]  # fmt: skip
    reward = RemoteReward(reward="it", encoding="multipart" if multipart else "json")
    packed = [pack(one, str(i), i, multipart) for i, one in enumerate(given)]
    request = ScoreRequest(
        protocol="mmrl-reward/1", request_id="0" * 32, reward="it", samples=tuple(one.sample for one in packed)
    )
    made = httpx.Request("POST", "http://x/", **asking.content(request, packed, multipart))
    size, bound = len(made.read()), reward._envelope() + sum(one.size for one in packed)
    assert size <= bound <= size + (3000 if multipart else 10)


def test_what_is_too_large_alone_is_said_and_not_sent(serve: Serve) -> None:
    stub, reward = serve(right, batch_size=3)
    long = reward.score([Sample(Prompt("long", "x"), "y" * 2000)])[0].reason
    assert "is up to 21" in long and "serve.max_bytes there to 21" in long and "multipart" not in long
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)  # 2400 bytes in base64
    given = [*texts(1), Sample(Prompt("big", "x"), images=(noise,)), *texts(1)]
    found = reward.score(given)
    assert found[0] == found[2] == 0.5 and len(stub.bodies) == 2
    for said in ("1 sample is up to 2", "takes 1000", "serve.max_bytes there to 2", "encoding: multipart"):
        assert said in found[1].reason
    reason = RewardSet({"it": (reward, 1.0)}).score(given).messages[0]
    assert "multipart (a quarter smaller)" in reason  # the line is not cut before what to do


def test_a_group_that_is_too_large_is_said_and_not_sent(serve: Serve) -> None:
    stub, reward = serve(right, {"scope": "groupwise"}, kind=RemoteGroupReward)
    group = [Sample(Prompt("p", "x"), "y" * 400) for _ in range(3)]
    found = reward.score(group)
    assert not stub.bodies and len(found) == 3 and len({one.reason for one in found}) == 1
    assert "3 samples is up to 1" in found[0].reason and "a group is not cut" in found[0].reason
    assert reward.score(group[:1]) == [0.5]


def test_an_answer_that_was_looked_for_and_not_found_is_told(serve: Serve) -> None:
    details = [{"answered": True}, {"answer": "7"}, {"how": "a word"}, {"answered": True, "answer": 0}]

    def telling(body: dict[str, Any]) -> dict[str, Any]:
        found = right(body)
        for result, detail in zip(found["results"], details, strict=True):
            result["detail"] = detail
        return found

    _, reward = serve(telling)
    given = texts(4)
    reward.score(given)
    assert [one.meta.get("answer", "no key") for one in given] == [None, "7", "no key", 0]


def test_parts_of_a_score_are_set_back(serve: Serve) -> None:
    def telling(body: dict[str, Any]) -> dict[str, Any]:
        found = right(body)
        found["results"][0]["components"] = {"vq": 1.5, "ta": -2}
        return found

    _, reward = serve(telling)
    given = texts(2)
    given[0].meta["components"] = {"other": {"a": 1.0}}
    RewardSet({"mine": (reward, 1.0)}).score(given)
    assert given[0].meta["components"] == {"other": {"a": 1.0}, "mine": {"vq": 1.5, "ta": -2.0}}
    assert "components" not in given[1].meta


@pytest.mark.parametrize(
    "told",
    [{"score": True}, {"score": "0.5"}, {"components": {"a": True}}, {"components": {"a": "1"}}, {"score": 10**400}],
)
def test_what_is_no_number_is_no_answer(serve: Serve, told: dict[str, Any]) -> None:
    def telling(body: dict[str, Any]) -> dict[str, Any]:
        found = right(body)
        found["results"][0] |= told
        return found

    _, reward = serve(telling, backoff=1000.0)
    assert "not mmrl-reward/1: ('results', 0, '" in reward.score(texts(2))[1].reason


@pytest.mark.parametrize(
    "facts",
    [{"max_batch": 0}, {"max_batch": -1}, {"max_batch": True}, {"max_bytes": 0}, {"scope": "other"}, {"needs": ["other"]},
     {"range": [0, "1"]}, {"higher_is_better": "false"}],
)  # fmt: skip
def test_facts_of_a_server_that_are_none_end_the_run_when_it_starts(serve: Serve, facts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"does not speak mmrl-reward/1: .*{next(iter(facts))}"):
        serve(right, facts)


@pytest.mark.parametrize("piece", [b" " * 500, b" "])
def test_facts_without_end_or_in_drops_are_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        for _ in range(20):
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(0.02)

    monkeypatch.setattr(asking, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes" if len(piece) > 1 else "too slowly"):
        serve(right, {"told": endless}, read_timeout=0.1)


def test_long_messages_of_a_server_are_cut_and_new_codes_are_taken(serve: Serve) -> None:
    def refuses(body: dict[str, Any]) -> dict[str, Any]:
        wrong = {"status": "error", "error": {"code": "of_another_server", "message": "no " * 100_000}}
        return right(body, results=[{"id": sample["id"]} | wrong for sample in body["samples"]])

    _, reward = serve(refuses)
    assert (
        reward.score(texts(1))[0].reason.startswith("the server says: no no")
        and len(reward.score(texts(1))[0].reason) < 600
    )
    _, reward = serve(lambda body: right(body, model=MODEL | {"name": "m" * 100_000}))
    assert "another model" in reward.score(texts(1))[0].reason and len(reward.score(texts(1))[0].reason) < 300


def test_parts_that_are_not_finite_are_no_answer(serve: Serve) -> None:
    def telling(body: dict[str, Any]) -> bytes:
        found = right(body)
        found["results"][0]["components"] = {"vq": float("nan")}
        return json.dumps(found).encode()

    _, reward = serve(telling, backoff=1000.0)
    assert "not mmrl-reward/1" in reward.score(texts(1))[0].reason


def test_tokens_that_no_header_can_hold_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("secret\n", "secret\r\nX: 1", "sec ret", "sécret", "secret\0"):
        with pytest.raises(UserError) as found:
            bearer("T", {"T": token})
        assert "T has blanks" in str(found.value) and "cret" not in str(found.value)
    assert bearer("T", {"T": "a.b-c~1"}) == "a.b-c~1" and bearer("T", {}) is None and bearer("T", {"T": ""}) is None
    monkeypatch.setenv("MMRL_REWARD_TOKEN", "secret")
    with pytest.raises(UserError, match="unencrypted"):
        RemoteReward(url="http://rewards.example", reward="it").setup(CPU)


@pytest.mark.parametrize(
    "url", ["ftp://x", "x:80", "http://", "http://me:secret@host", "http://host/?a=1", "http://host/#a"]
)
def test_urls_that_are_none_show_no_password(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST") as found:
        base_url(url, "http://HOST")
    assert "secret" not in str(found.value)
    assert base_url("https://host:1/path/", "") == "https://host:1/path"
    with pytest.raises(ValidationError):
        RemoteReward(url=url, reward="it")


def test_json_numbers_are_finite_on_the_wire() -> None:
    with pytest.raises(ValidationError):
        Result(id="a", status="ok", score=float("nan"))
    answer = {"protocol": "mmrl-reward/1", "request_id": "a", "timing_ms": 1, "model": MODEL,
              "results": [{"id": "a", "status": "ok", "score": float("nan")}]}  # fmt: skip
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(json.dumps(answer))
    with pytest.raises(ValidationError, match="options"):
        ScoreRequest.model_validate(
            {
                "protocol": "mmrl-reward/1",
                "request_id": "a",
                "reward": "b",
                "options": {"a": 1},
                "samples": [{"id": "a", "prompt": ""}],
            }
        )


def test_a_meter_counts_from_many_threads_and_begins_anew() -> None:
    meter = Meter()

    def work() -> None:
        for k in range(2000):
            meter.add("retries")
            meter.took(k / 1000)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = meter.take("retries", "other")
    assert found["retries"] == 8000 and found["other"] == 0 and meter.total["retries"] == 8000
    assert found["latency_p50"] <= found["latency_p95"] <= 2
    meter.add("retries")
    assert meter.take("retries") == {"retries": 1} and meter.total["retries"] == 8001
    for k in range(101):
        meter.took(k)
    found = meter.take()
    np.testing.assert_allclose([found["latency_p50"], found["latency_p95"]], [50, 95])
