"""What is kept of judges: of whom, what could be read, once per question; who answers; stopping, tokens, and videos that are shown."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.errors import UserError
from mmrl.reward import Failed, RewardSet
from mmrl.reward.fingerprint import fingerprint as fingerprint_of
from mmrl.rewards.judge.chat import Chat
from mmrl.rewards.judge.endpoint import Endpoint
from mmrl.rewards.judge.flights import Flights
from mmrl.rewards.judge.kept import Kept, Reply
from mmrl.rewards.judge.pairs import PairJudge
from mmrl.rewards.judge.pointwise import Judge, Rubric
from mmrl.rewards.judge.question import show
from mmrl.rollout import FAILED, OK, Prompt, Sample
from mmrl.video import write_video
from tests.unit.judge_server import JudgeServer, Raw, Serve, pictures, user_text

THREE = '{"score": 3}'


def ready(kind: Any, server: JudgeServer, options: dict[str, Any] | None = None, **endpoint: Any) -> Any:
    reward = kind(endpoint={"url": server.url, "model": "alias", "backoff": 0.01, **endpoint}, **(options or {}))
    reward.setup(torch.device("cpu"))
    return reward


def sample(text: str, *media: Any) -> Sample:
    return Sample(Prompt("p", "which?", media=media), text=text)


def statuses(reward: Any, *texts: str) -> list[int]:
    found = RewardSet({"j": (reward, 1.0)}).score([sample(text) for text in texts], [0] * len(texts))
    return [int(one) for one in found.status[:, 0]]


# Who answers


def test_a_kept_answer_of_an_earlier_judge_does_not_decide_who_answers(serve: Serve, tmp_path: Path) -> None:
    """The first question of the second run is one that the first run's judge has answered."""
    who = {"model": "old"}
    server = serve(lambda body: json.dumps({"score": 3 if who["model"] == "old" else 5}))
    server.says = who
    assert ready(Judge, server, cache=str(tmp_path)).score([sample("a"), sample("c")]) == [0.5, 0.5]
    who["model"] = "new"
    reward = ready(Judge, server, cache=str(tmp_path))
    assert reward.score([sample("a")]) == [1.0], "asked anew"
    assert reward.score([sample("b"), sample("c")]) == [1.0, 1.0]
    assert len(server.bodies) == 5, "the question that said who answers is not asked twice"


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c", "d"]])
def test_kept_answers_of_this_judge_are_not_asked_again(texts: list[str], serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body: THREE)
    server.says = {"model": "one"}
    statuses(ready(Judge, server, cache=str(tmp_path)), *texts)
    before = len(server.bodies)
    reward = ready(Judge, server, cache=str(tmp_path))
    for _ in range(2):
        assert statuses(reward, *texts) == [OK] * len(texts)
    assert len(server.bodies) == before and server.met == 2, "each met the judge"


@pytest.mark.parametrize("kind", [Judge, PairJudge])
@pytest.mark.parametrize(
    "hello",
    [
        400,
        404,
        Raw(status=307, headers={"Location": "http://127.0.0.1:9/"}),
        Raw(b"<html>"),
        Raw([]),
        Raw(b"[" * 100_000),
        Raw({"error": "no model"}),
    ],
)
def test_a_judge_that_does_not_say_who_answers_is_refused_when_the_run_starts(
    hello: Any, kind: Any, serve: Serve
) -> None:
    server = serve(lambda body: THREE)
    server.hello = hello
    with pytest.raises(UserError, match=r"answers a first question with .*; correct endpoint.url or endpoint.model"):
        ready(kind, server)
    assert server.met == 1 and not server.bodies


def test_replicas_of_one_model_may_have_fingerprints_of_their_own(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body: THREE)
    free, bound = ready(Judge, server, cache=str(tmp_path / "a")), ready(Judge, server, fingerprint=True)
    for number, expected in enumerate((OK, FAILED)):
        server.says = {"model": "one", "system_fingerprint": f"replica {number}"}
        assert statuses(free, f"text {number}") == [OK]
        assert statuses(bound, f"text {number}") == [expected]
    before = len(server.bodies)
    assert statuses(ready(Judge, server, cache=str(tmp_path / "a")), "text 0", "text 1") == [OK, OK]
    assert len(server.bodies) == before, "answers of the other replica are kept ones too"


def test_verdicts_of_pairs_are_those_of_the_judge_that_answers(serve: Serve, tmp_path: Path) -> None:
    who = {"model": "old"}
    server = serve(lambda body: json.dumps({"reason": "", "winner": "1" if who["model"] == "old" else "2"}))
    options = {"orders": "one", "cache": str(tmp_path)}
    group = [sample("a"), sample("b"), sample("c")]
    server.says = who
    assert ready(PairJudge, server, options).score(group[:2]) == [1.0, 0.0]
    who["model"] = "new"
    assert ready(PairJudge, server, options).score(group) == [0.0, 0.5, 1.0]
    assert len(server.bodies) == 1 + 3, "the kept pair is asked anew, once"
    assert ready(PairJudge, server, options).score(group) == [0.0, 0.5, 1.0]
    assert len(server.bodies) == 1 + 3


def listed(**facts: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "other", "root": "/x"}, {"id": "alias", "created": 1, **facts}]}


@pytest.mark.parametrize("kind", [Judge, PairJudge])
def test_the_servers_list_of_models_is_part_of_what_a_run_is_resumed_with(kind: Any, serve: Serve) -> None:
    server = serve(lambda body: THREE)
    found = []
    for root, created in (("/models/a", 1), ("/models/a", 2), ("/models/b", 1)):
        server.models = listed(root=root) | {"created": created}
        reward = ready(kind, server)
        found.append((reward.elsewhere(), fingerprint_of(reward)))
    assert found[0] == found[1] and found[0][0] != found[2][0] and found[0][1] != found[2][1]
    assert json.loads(found[2][0]) == {"id": "alias", "root": "/models/b"}
    assert not server.bodies, "known without a question"


@pytest.mark.parametrize("kind", [Judge, PairJudge])
def test_what_a_reply_says_is_part_of_what_processes_and_resumed_runs_compare(kind: Any, serve: Serve) -> None:
    server = serve(lambda body: THREE)
    told = []
    for model, fingerprint, wanted in (
        ("a", "1", False),
        ("a", "2", False),
        ("b", "1", False),
        ("a", "1", True),
        ("a", "2", True),
    ):
        server.says = {"model": model, "system_fingerprint": fingerprint}
        reward = ready(kind, server, fingerprint=wanted)
        told.append((reward.elsewhere(), fingerprint_of(reward)))
    assert told[0] == told[1] and len(set(told)) == 4
    assert not server.bodies


@pytest.mark.parametrize("kind", [Judge, PairJudge])
def test_two_judges_of_one_name_keep_to_their_own_answers(kind: Any, serve: Serve, tmp_path: Path) -> None:
    """Both servers say `model: alias`; their lists tell them apart."""
    group = [sample("a"), sample("b")]
    found = []
    for root, answer in (("/a", '{"score": 1, "winner": "1"}'), ("/b", '{"score": 5, "winner": "2"}')) * 2:
        server = serve(lambda body, said=answer: said)
        server.says, server.models = {"model": "alias"}, listed(root=root)
        options = {"orders": "one", "cache": str(tmp_path / "pairs")} if kind is PairJudge else {}
        found.append([float(one) for one in ready(kind, server, options, cache=str(tmp_path / "said")).score(group)])
        assert len(server.bodies) == (0 if len(found) > 2 else 1 if kind is PairJudge else 2)
    assert found[:2] == found[2:] == ([[1.0, 0.0], [0.0, 1.0]] if kind is PairJudge else [[0.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("models", [404, 401, [], {"data": None}, {"data": [{"id": "other"}]}, {"data": ["alias"]}])
def test_a_server_need_not_list_its_models(models: Any, serve: Serve) -> None:
    server = serve(lambda body: THREE)
    server.models = models
    reward = ready(Judge, server)
    assert reward.elsewhere() == "" and statuses(reward, "a") == [OK]


def test_a_judge_that_is_not_there_is_told_when_the_run_starts(serve: Serve) -> None:
    server = serve(lambda body: THREE)
    server.models = 503
    with pytest.raises(UserError, match=r"after 2 tries\); start it, or correct endpoint.url"):
        ready(Judge, server, tries=2)


# What is kept


@pytest.mark.parametrize("kind", [Judge, PairJudge])
def test_what_could_not_be_read_is_not_kept(kind: Any, serve: Serve, tmp_path: Path) -> None:
    good = [False]
    server = serve(lambda body: '{"score": 3, "winner": "1", "reason": ""}' if good[0] else "")
    assert statuses(ready(kind, server, cache=str(tmp_path)), "a", "b") == [FAILED, FAILED]
    assert not list(tmp_path.rglob("*.json"))
    good[0] = True
    assert statuses(ready(kind, server, cache=str(tmp_path)), "a", "b") == [OK, OK]
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_kept_answer_that_cannot_be_read_is_asked_anew(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body: THREE)
    assert statuses(ready(Judge, server, cache=str(tmp_path)), "a") == [OK]
    (file,) = tmp_path.rglob("*.json")
    file.write_text(json.dumps({"text": "", "first": {}, "who": [None, None]}))
    assert ready(Judge, server, cache=str(tmp_path)).score([sample("a")]) == [0.5]
    assert json.loads(file.read_text())["text"] == THREE


def test_what_is_in_a_file_is_part_of_a_question(serve: Serve, tmp_path: Path) -> None:
    """The path stays, the picture does not."""
    server = serve(lambda body: '{"score": 3, "reason": "", "winner": "1"}')
    file = tmp_path / "source.png"
    for kind in (Judge, PairJudge):
        server.bodies.clear()
        reward = ready(kind, server, {"orders": "one"} if kind is PairJudge else {})
        for shade, asked in ((1, 1), (1, 1), (2, 2)):
            Image.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8)).save(file)
            reward.score([sample("a", str(file)), sample("b" if kind is PairJudge else "a", str(file))])
            assert len(server.bodies) == asked


def test_everything_that_may_change_a_verdict_is_part_of_what_it_is_kept_under() -> None:
    """One change at a time, from the endpoint, the question and the form of the answer."""
    base: dict[str, Any] = {"model": "m"}
    words = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    keys = set()
    for change in ({}, {"model": "n"}, {"revision": "2"}, {"temperature": 1.0}, {"max_tokens": 5}, {"seed": 1}):
        chat = Chat(Endpoint(**base | change))
        keys.add(chat._key(chat._body(words)))
    chat = Chat(Endpoint(**base))
    keys.add(chat._key(chat._body(words, schema={"type": "object"})))
    keys.add(chat._key(chat._body(words, top_logprobs=5)))
    keys.add(chat._key(chat._body(words, top_logprobs=6)))
    keys.add(chat._key(chat._body([{**words[0], "role": "system"}])))
    chat.listed = "another root"
    keys.add(chat._key(chat._body(words)))
    assert len(keys) == 11
    same = Chat(Endpoint(**base, url="http://127.0.0.1:9/v1", timeout=3, concurrency=1, tries=1))
    assert same._key(same._body(words)) in keys, "where and how patiently it is asked changes no verdict"
    video = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    shown = [
        json.dumps(show(video, Endpoint(**base | change), "Result"))
        for change in ({}, {"max_frames": 3}, {"max_pixels": 4})
    ]
    assert len(set(shown)) == 3


def _write(folder: str, number: int) -> None:
    kept = Kept(folder)
    for turn in range(40):
        kept.put(f"aa{turn % 4}", Reply("x" * (2000 * (number + 1)), {"Yes": -0.5}))
        found = Kept(folder).get(f"aa{(turn + 1) % 4}")
        assert found is None or (set(found.text) == {"x"} and len(found.text) % 2000 == 0)


def test_several_processes_keep_answers_in_one_folder(tmp_path: Path) -> None:
    work = multiprocessing.get_context("fork")
    writers = [work.Process(target=_write, args=(str(tmp_path), number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(list(tmp_path.rglob("*"))) == 1 + 4, "no part is left"


def test_equal_questions_are_asked_once(serve: Serve) -> None:
    server = serve(lambda body: THREE)
    reward = ready(Judge, server)
    assert reward.score([sample("same")] * 20 + [sample("other")]) == [0.5] * 21
    stats = reward.stats()
    assert len(server.bodies) == 2 and (stats["asked"], stats["cached"]) == (2, 19)
    unreadable = serve(lambda body: "hm")
    assert statuses(ready(Judge, unreadable), *["same"] * 5)[:2] == [FAILED, FAILED]
    assert len(unreadable.bodies) == 2, "the question and the one re-ask"


def test_threads_that_ask_the_same_share_one_answer() -> None:
    flights, begun, go = Flights(), threading.Event(), threading.Event()
    done, found = [], []

    def work() -> int:
        done.append(1)
        begun.set()
        assert go.wait(30)
        return 7

    threads = [threading.Thread(target=lambda: found.append(flights.once("k", work))) for _ in range(6)]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    assert flights.once("other", lambda: 8) == (8, True)
    go.set()
    for thread in threads:
        thread.join(30)
    assert {value for value, _ in found} == {7} and len(found) == 6
    assert sum(own for _, own in found) == len(done)
    assert flights.once("k", lambda: 9) == (9, True), "what is over is not shared"


def test_what_work_raises_is_raised_to_all_and_forgotten() -> None:
    flights = Flights()

    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        flights.once("k", broken)
    assert flights.once("k", lambda: 1) == (1, True)


# Stopping, tokens


@pytest.mark.parametrize("kind", [Judge, PairJudge])
def test_a_stop_ends_the_retries(kind: Any, serve: Serve) -> None:
    came = threading.Event()

    def busy(body: dict[str, Any]) -> int:
        came.set()
        return 503

    server = serve(busy)
    reward = ready(kind, server, backoff=300.0)
    found: list[Any] = []
    scoring = threading.Thread(target=lambda: found.extend(reward.score([sample("a"), sample("b")])), daemon=True)
    scoring.start()
    assert came.wait(30)
    reward.stop()
    scoring.join(30)
    assert not scoring.is_alive() and all(isinstance(one, Failed) for one in found) and len(found) == 2
    assert "given up after 1 tries" in found[0].reason or "not asked" in found[0].reason
    kind(endpoint={"model": "x"}).stop()  # before setup


def test_a_token_is_not_sent_in_the_open_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRL_JUDGE_TOKEN", "secret")
    there: dict[str, Any] = {"url": "http://judge.example/v1", "model": "x", "allow_remote": True}
    with pytest.raises(UserError, match=r"unencrypted; use https, or set plain_token") as raised:
        Judge(endpoint=there).setup(torch.device("cpu"))  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)
    for change in ({"plain_token": True}, {"url": "https://judge.example/v1"}, {"url": "http://localhost:1/v1"}):
        assert Judge(endpoint=there | change).endpoint.token() == "secret"  # type: ignore[arg-type]
    monkeypatch.delenv("MMRL_JUDGE_TOKEN")
    assert Judge(endpoint=there).endpoint.token() is None  # type: ignore[arg-type]


# What is shown


def video(frames: int = 7) -> np.ndarray:
    return np.stack([np.full((16, 16, 3), 30 * k, dtype=np.uint8) for k in range(frames)])


@pytest.mark.parametrize("kind", [Judge, PairJudge])
def test_source_videos_are_shown_as_frames(kind: Any, serve: Serve, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", video(), 8.0)
    server = serve(lambda body: '{"score": 3, "winner": "1", "reason": ""}')
    reward = ready(kind, server, max_frames=3)
    media = (video(), video(2), str(tmp_path / "clip.mp4"), video()[0])
    assert not any(isinstance(one, Failed) for one in reward.score([sample("a", *media), sample("b", *media)]))
    shown = server.bodies[0]
    assert len(pictures(shown)) == 3 + 2 + 3 + 1
    for line in ("Source 1, 3 frames of a video in order:", "Source 2, 2 frames", "Source 3, 3 frames", "Source 4:"):
        assert user_text(shown).count(line) == 1
    ends = pictures(shown)[0], pictures(shown)[8]
    assert ends[0] == ends[1], "from the first frame on"


@pytest.mark.parametrize(
    "media", [np.zeros((2, 8, 8, 4), np.uint8), np.zeros((0, 8, 8, 3), np.uint8), 3, "no/such.mp4"]
)
def test_what_is_no_picture_or_video_is_a_failure(media: Any, serve: Serve) -> None:
    server = serve(lambda body: THREE)
    found = RewardSet({"j": (ready(Judge, server), 1.0)}).score([sample("a", media)])
    assert found.status[0, 0] == FAILED and not server.bodies
    assert (
        "expected a uint8 RGB" in found.messages[0]
        or "without frames" in found.messages[0]
        or "no file" in found.messages[0]
    )


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, -1.0, 0.5), (1.0, -3.0), (0.25, -0.5, 4.0, -2.0)])
def test_rubrics_are_the_formula_and_stay_in_range(weights: tuple[float, ...], serve: Serve) -> None:
    """max(0, sum w pass) / sum |w| over every way to pass, as a loop."""
    items = [{"text": f"point {k}", "weight": weight} for k, weight in enumerate(weights)]
    holds: list[bool] = []
    reward = ready(Rubric, serve(lambda body: json.dumps({"holds": holds})), {"items": items})
    for number in range(2 ** len(weights)):
        holds[:] = [bool(number >> k & 1) for k in range(len(weights))]
        earned = whole = 0.0
        for weight, held in zip(weights, holds, strict=True):
            whole += abs(weight)
            earned += weight * (1.0 if held else 0.0)
        (found,) = reward.score([sample(f"text {number}")])
        assert found == pytest.approx(max(0.0, earned) / whole) and 0 <= found <= 1
