"""Endpoints that answer badly: what is no whole answer of one judge is a failure, and never a number."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mmrl.reward import RewardSet
from mmrl.rewards.judge import chat
from mmrl.rewards.judge.pairs import PairJudge
from mmrl.rewards.judge.pointwise import Judge, UnifiedReward
from mmrl.rewards.remote import outage
from mmrl.rollout import FAILED, OK, Prompt, Sample
from tests.unit.judge_server import JudgeServer, Raw, Serve

FIVE = '{"reason": "", "score": 5}'


def ready(kind: Any, server: JudgeServer, options: dict[str, Any] | None = None, **endpoint: Any) -> Any:
    reward = kind(endpoint={"url": server.url, "model": "judge", "backoff": 0.001, **endpoint}, **(options or {}))
    reward.setup(torch.device("cpu"))
    return reward


def scored(reward: Any, *texts: str) -> Any:
    samples = [Sample(Prompt("p", "which?"), text=text) for text in texts or ("a",)]
    return RewardSet({"j": (reward, 1.0)}).score(samples, [0] * len(samples))


def choice(content: Any = FIVE, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more.pop("message", {})}, **more}


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "out of memory"}},
        {"choices": []},
        {"choices": None},
        {"choices": {"0": choice()}},
        {"choices": ["no"]},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "no"}]},
        {"choices": [choice(), choice('{"score": 1}')]},
        {"choices": [choice(7)]},
        {"choices": [choice([FIVE])]},
        [choice()],
        "choices",
        None,
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"choices": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_completion_is_a_failure(body: Any, serve: Serve) -> None:
    found = scored(ready(Judge, serve(lambda _: Raw(body))))
    assert found.status[0, 0] == FAILED and "no chat completion of one choice" in found.messages[0]


@pytest.mark.parametrize("end", ["length", "content_filter"])
@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (Judge, {}, 'The response says {"score": 5}, and'),
        (UnifiedReward, {"version": "v1.5", "task": "x"}, "Final Score: 3"),
        (PairJudge, {"form": "think", "task": "x"}, "<answer>Image 1 is better</answer> or"),
    ],
)
def test_an_answer_that_broke_off_is_no_verdict(
    end: str, kind: Any, options: dict[str, Any], text: str, serve: Serve
) -> None:
    server = serve(lambda body: Raw({"choices": [choice(text, finish_reason=end)]}))
    found = scored(ready(kind, server, options), "a", "b")
    assert (found.status == FAILED).all() and ("max_tokens" if end == "length" else "a filter") in found.messages[0]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (None, FAILED),
        ("", FAILED),
        ([], FAILED),
        ([{"type": "text", "text": '{"reason": "", '}, {"type": "text", "text": '"score": 5}'}], OK),
        ([{"type": "thinking", "thinking": FIVE}, {"type": "text", "text": "hm"}], FAILED),
    ],
)
def test_a_text_in_parts_is_the_text_of_its_text_parts(content: Any, status: int, serve: Serve) -> None:
    message = {"reasoning_content": FIVE, "reasoning": FIVE}
    found = scored(ready(Judge, serve(lambda _: Raw({"choices": [choice(content, message=message)]}))))
    assert found.status[0, 0] == status and (status == FAILED or found.values[0, 0] == 1)


def test_a_refusal_is_told(serve: Serve) -> None:
    server = serve(lambda _: Raw({"choices": [choice(None, message={"refusal": "I cannot judge that."})]}))
    found = scored(ready(Judge, server))
    assert found.status[0, 0] == FAILED and "the judge refused: I cannot judge that." in found.messages[0]
    assert len(server.bodies) == 1


def top(*entries: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    listed = [{"token": token, "logprob": value, "bytes": [1, 2]} for token, value in entries]
    return choice("Yes", logprobs={"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": listed}]}, **more)


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{"top_logprobs": []}]}]
)
def test_an_endpoint_without_log_probs_is_told(logprobs: Any, serve: Serve) -> None:
    server = serve(lambda _: Raw({"choices": [choice("Yes", logprobs=logprobs)]}))
    found = scored(ready(Judge, server, {"form": "yes_no"}))
    assert found.status[0, 0] == FAILED and "without log-probs" in found.messages[0] and len(server.bodies) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.7, 1e6, None, "high", [0]])
def test_a_log_prob_that_is_none_is_no_completion(value: Any, serve: Serve) -> None:
    server = serve(lambda _: Raw({"choices": [top(("Yes", value), ("No", -0.5))]}))
    found = scored(ready(Judge, server, {"form": "yes_no"}))
    assert found.status[0, 0] == FAILED and "no chat completion" in found.messages[0]


def test_one_token_is_not_cut_off(serve: Serve) -> None:
    listed = top(("Yes", math.log(0.75)), ("Yes", math.log(0.75)), ("No", math.log(0.25)), finish_reason="length")
    assert ready(Judge, serve(lambda _: Raw({"choices": [listed]})), {"form": "yes_no"}).score(
        [Sample(Prompt("p", "?"), text="a")]
    ) == [pytest.approx(0.75)]


def test_a_redirect_is_not_followed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRL_JUDGE_TOKEN", "secret")
    other = serve(lambda _: FIVE)
    server = serve(lambda _: Raw(status=307, headers={"Location": f"{other.url}/chat/completions"}))
    found = scored(ready(Judge, server))
    assert found.status[0, 0] == FAILED and "307" in found.messages[0] and not other.bodies


def test_a_server_that_repeats_the_token_does_not_bring_it_into_the_log(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMRL_JUDGE_TOKEN", "secret-token")
    server = serve(lambda _: Raw({"error": "Bearer secret-token may not"}, status=403))
    found = scored(ready(Judge, server))
    assert "403" in found.messages[0] and "Bearer *** may not" in found.messages[0]


def test_an_answer_that_comes_in_drops_is_over_in_time(serve: Serve) -> None:
    """It never ends."""
    begun = itertools.count()

    def drops() -> Iterator[bytes]:
        next(begun)
        while True:
            time.sleep(0.001)
            yield b" "

    server = serve(lambda _: Raw(drops()))
    found = scored(ready(Judge, server, timeout=0.05, tries=2))
    assert found.status[0, 0] == FAILED and "within 0.05 seconds" in found.messages[0] and next(begun) == 2


def test_an_answer_that_is_too_long_is_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_BYTES", 4096)
    server = serve(lambda _: Raw(iter([b" " * 1024] * 100)))
    found = scored(ready(Judge, server))
    assert found.status[0, 0] == FAILED and "more than 4096 bytes" in found.messages[0] and len(server.bodies) == 1


def test_an_answer_is_not_unpacked(serve: Serve) -> None:
    """A little gzip can be a lot of JSON, and it was not asked for."""
    whole = json.dumps({"choices": [choice(FIVE + " " * 1_000_000)]}).encode()
    server = serve(lambda _: Raw(gzip.compress(whole), headers={"Content-Encoding": "gzip"}))
    found = scored(ready(Judge, server))
    assert found.status[0, 0] == FAILED and "no chat completion" in found.messages[0]


def test_a_date_to_come_again_is_heeded(serve: Serve) -> None:
    late = Raw(status=429, headers={"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"})
    server = serve(lambda _: late)
    assert "asks to come again in" in scored(ready(Judge, server)).messages[0] and len(server.bodies) == 1
    late.headers["Retry-After"] = "Fri, 31 Dec 1999 23:59:59 GMT"
    assert "after 2 tries" in scored(ready(Judge, server, tries=2)).messages[0]


def test_a_judge_that_does_not_answer_is_told_in_one_line(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "QUIET", 0.0)
    answers: list[Any] = [FIVE, 503, 503]
    server = serve(lambda _: answers.pop())
    assert scored(ready(Judge, server)).values.tolist() == [[1.0]]
    away, back = caplog.messages
    assert away.startswith(f"judge {server.url} gives no usable answer for 0 s (503 ") and away.endswith(
        "; 4 more tries of this question"
    )
    assert back.startswith(f"judge {server.url} answers again, after ")


def test_a_judge_that_hangs_does_not_keep_what_is_stopped(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    asked, end = threading.Event(), threading.Event()

    def hangs(_: Any) -> Any:
        asked.set()
        assert end.wait(60)
        return FIVE

    reward = ready(Judge, serve(hangs), timeout=3000.0)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(scored(reward)), daemon=True)
    thread.start()
    assert asked.wait(30)
    reward.stop()
    thread.join(30)
    end.set()
    assert not thread.is_alive() and "given up after 1 tries" in found[0].messages[0] and not caplog.records
