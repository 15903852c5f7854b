"""The real reward server as a process: 2,000 pictures through faults and a restart, groups, what is sent, and how it ends."""

from __future__ import annotations

import ast
import base64
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from mmrl.errors import UserError
from mmrl.reward import RewardSet, graded
from mmrl.rewards.remote.client import RemoteGroupReward, RemoteReward
from mmrl.rewards.remote.media import png
from mmrl.rollout import FAILED, OK, Prompt, Sample
from tests.end_to_end.faulty_proxy import FAULTS, PATIENCE, FaultyProxy
from tests.end_to_end.reward_server import Server, samples

PICTURES, BATCH, AT_A_TIME = 2000, 20, 4
CPU = torch.device("cpu")


@pytest.mark.parametrize("encoding", ["json", "multipart"])
def test_nothing_is_lost_and_nothing_becomes_a_zero(tmp_path: Path, encoding: Any) -> None:
    server = Server(tmp_path)
    server.start()
    server.wait()
    restarted: list[int] = []

    def before(number: int) -> None:
        if number == 60 and not restarted:
            restarted.append(number)
            server.kill()
            server.start()

    proxy = FaultyProxy(("127.0.0.1", server.port), every=5, before=before)
    try:
        reward = RemoteReward(
            url=proxy.url,
            reward="bright",
            batch_size=BATCH,
            concurrency=AT_A_TIME,
            encoding=encoding,
            read_timeout=PATIENCE,
            backoff=0.05,
            deadline=300,
        )
        reward.setup(CPU)
        given = samples(PICTURES)
        scores = RewardSet({"bright": (reward, 1.0)}).score(given)
        assert (scores.status == OK).all(), scores.messages[:3]
        wanted = [float(sample.images[0].mean()) for sample in given]
        np.testing.assert_allclose(scores.values[:, 0], wanted)
        assert set(proxy.met) == set(FAULTS) and restarted
        stats = reward.stats()
        assert stats["requests"] == PICTURES / BATCH and stats["retries"] == reward.retries >= sum(proxy.met.values())
        assert proxy.count == stats["requests"] + stats["retries"]
        assert 0 < stats["latency_p50"] <= stats["latency_p95"]
        assert reward.stats() == {"requests": 0, "retries": 0}
        # Every answer that the client did not get was asked for again by its request id: no process scored a picture twice. What the
        # killed one had scored and not told, at most the requests that were under way, the next one scored again.
        lives = server.lives()
        assert len(lives) == 2 and max(max(life.values()) for life in lives) == 1
        assert set().union(*lives) == {sample.prompt.id for sample in given}
        again = len(set(lives[0]) & set(lives[1]))
        assert again <= AT_A_TIME * BATCH, f"{again} pictures were scored by both"
        print(f"{encoding}: {proxy.count} requests, {dict(proxy.met)}, {again} pictures scored by both processes")
    finally:
        proxy.close()
        server.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"), ", max_batch: 6")
    found.start()
    found.wait()
    yield found
    found.kill()


def grey(prompt: str, *levels: int) -> list[Sample]:
    """A group of even pictures."""
    return [Sample(Prompt(prompt, "x"), images=(np.full((4, 4, 3), level, np.uint8),)) for level in levels]


@pytest.mark.parametrize("encoding", ["json", "multipart"])
def test_groups_are_compared_as_a_whole(server: Server, encoding: Any) -> None:
    reward = RemoteGroupReward(url=server.url, reward="above", encoding=encoding)
    reward.setup(CPU)
    assert not reward.higher_is_better and not reward.deterministic and reward.inputs() == ("image",)
    one, other = grey("a", 10, 20, 60), grey("a", 1, 3)
    scores = RewardSet({"above": (reward, -1.0)}).score([*one, *other], [0, 0, 0, 1, 1])  # one prompt, two groups
    assert scores.values[:, 0].tolist() == [-20, -10, 30, -1, 1]
    assert graded([*one, *other]) == {"above": {"of 3": 3, "of 2": 2}}


def test_a_request_may_hold_several_groups(server: Server) -> None:
    pictures = [base64.b64encode(png(one.images[0])).decode() for one in grey("p", 10, 1, 20, 3)]
    given = [
        {"id": str(k), "group": group, "prompt": "x", "media": [{"kind": "image", "mime": "image/png", "data": data}]}
        for k, (group, data) in enumerate(zip([1, "1", 1, "1"], pictures, strict=True))
    ]
    body = {"protocol": "mmrl-reward/1", "request_id": "several", "reward": "above", "samples": given}
    found = httpx.post(f"{server.url}/v1/score", json=body, trust_env=False).json()
    assert [one["score"] for one in found["results"]] == [-5, -1, 5, 1]
    assert {one["detail"]["how"] for one in found["results"]} == {"of 2"}


def test_win_rates_of_a_served_pairwise_reward(server: Server) -> None:
    reward = RemoteGroupReward(url=server.url, reward="brighter")
    reward.setup(CPU)
    group = grey("p", 10, 20, 20, 40)
    scores = RewardSet({"brighter": (reward, 1.0)}).score(group, [7] * 4)
    np.testing.assert_allclose(scores.values[:, 0], [0, 0.5, 0.5, 1])
    assert reward.limits() == (0.0, 1.0)
    assert graded(group) == {"brighter": {"compared": 4}}


def test_a_group_larger_than_the_server_takes_is_one_clear_error(server: Server) -> None:
    reward = RemoteGroupReward(url=server.url, reward="above")
    reward.setup(CPU)
    with pytest.raises(
        UserError, match=r"a group of 7 samples, and .* takes 6 per request; a group is not cut, so raise serve.max"
    ):
        reward.score(grey("p", *range(7)))
    scores = RewardSet({"above": (reward, -1.0)}).score(grey("p", *range(7)), [0] * 7)
    assert (scores.status == FAILED).all() and "serve.max_batch there to 7" in scores.messages[0]
    broken = grey("p", 1, 2, 3)
    broken[1].images = (np.zeros((4, 4), np.uint8),)
    scores = RewardSet({"above": (reward, -1.0)}).score(broken, [0] * 3)
    assert (scores.status == FAILED).all() and "a sample of its group cannot be sent" in scores.messages[0]


def test_the_name_must_fit_the_scope(server: Server) -> None:
    with pytest.raises(UserError, match=r"'brighter' of .* is pairwise; ask for it by name: remote_group"):
        RemoteReward(url=server.url, reward="brighter").setup(CPU)
    with pytest.raises(UserError, match=r"'bright' of .* is pointwise; ask for it by name: remote$"):
        RemoteGroupReward(url=server.url, reward="bright").setup(CPU)
    lower = RemoteGroupReward(url=server.url, reward="above")
    lower.setup(CPU)
    with pytest.raises(UserError, match="lower is better for reward 'above'"):
        RewardSet({"above": (lower, 1.0)}).check_trained()


@pytest.mark.parametrize("encoding", ["json", "multipart"])
def test_everything_that_a_sample_holds_arrives(server: Server, tmp_path: Path, encoding: Any) -> None:
    from mmrl.video import write_video

    picture, clip = np.full((2, 3, 3), 7, np.uint8), np.full((4, 2, 2, 3), 5, np.uint8)
    (tmp_path / "source.png").write_bytes(png(picture))
    meta = {"size": (3, 2), "fps": 4, "object": object(), "reference_media": (picture + 1, clip + 1)}
    prompt = Prompt("id", "text", (picture, str(tmp_path / "source.png"), clip), {"boxes": [1, 2.5]}, meta)
    latents = {"x": torch.ones(2, 3, dtype=torch.bfloat16)}
    own = {"fps": 8.0, "tokens": 12, "latents": latents, "graded": {"other": "x"}}
    given = [
        Sample(prompt, images=(picture + 2,), video=clip + 3, meta=own),
        Sample(Prompt("t", "x"), "Forty", meta={}),
    ]
    reward = RemoteReward(url=server.url, reward="seen", encoding=encoding)
    reward.setup(CPU)
    told, answered = reward.score(given)
    assert told == 2.0 and ast.literal_eval(told.how) == {
        "video": ((4, 2, 2, 3), 8 * 48),
        "latents": {"x": ("torch.bfloat16", 6.0)},
        "media": [((2, 3, 3), 7 * 18), ((2, 3, 3), 7 * 18), ((4, 2, 2, 3), 5 * 48)],
        "references": [((2, 3, 3), 8 * 18), ((4, 2, 2, 3), 6 * 48)],
        "images": [((2, 3, 3), 9 * 18)],
        "meta": {"size": [3, 2], "fps": 4},
        "output": {"tokens": 12, "fps": 8.0},
        "target": {"boxes": [1, 2.5]},
    }
    assert answered == 1.0 and answered.how == "read" and given[1].meta == {"answer": "FORTY"}
    write_video(tmp_path / "film.mp4", np.zeros((6, 16, 16, 3), np.uint8), 3.0)
    film = Sample(Prompt("f", "x", (tmp_path / "film.mp4",)))
    told = reward.score([film])[0].how
    assert "'media': [((6, 16, 16, 3)" in told and "'fps': 3.0" in told


def test_what_cannot_be_sent_is_a_failure_of_its_sample_alone(server: Server) -> None:
    reward = RemoteReward(url=server.url, reward="bright")
    reward.setup(CPU)
    given = grey("p", 1, 2, 3, 4, 5)
    given[0].images = (np.zeros((4, 4, 3), np.float32),)
    given[1].prompt = Prompt("nan", "x", target=float("nan"))
    given[2].prompt = Prompt("missing", "x", ("nowhere.png",))
    given[3].prompt = Prompt("set", "x", target={1, 2})
    found = reward.score(given)
    assert found[4] == 5.0
    for failed, why in zip(
        found, ("float32 array", "nothing that JSON can hold", "no file", "nothing that JSON"), strict=False
    ):
        assert "cannot be sent" in failed.reason and why in failed.reason


def test_threads_and_forked_processes_ask_for_themselves(server: Server) -> None:
    reward = RemoteReward(url=server.url, reward="bright", batch_size=3, concurrency=2)
    reward.setup(CPU)
    given = samples(24)
    wanted = [float(sample.images[0].mean()) for sample in given]
    with ThreadPoolExecutor(4) as pool:
        assert all(found == wanted for found in pool.map(lambda _: reward.score(given), range(4)))
    read, write = os.pipe()
    child = os.fork()
    if not child:  # its threads are gone, and the connections are its parent's
        try:
            threading.Timer(60, os._exit, (3,)).start()
            os.write(write, repr(reward.score(given) == wanted).encode())
        finally:
            os._exit(0)
    try:
        assert reward.score(given) == wanted
    finally:
        _, status = os.waitpid(child, 0)
    assert status == 0 and os.read(read, 10) == b"True"
    os.close(read)
    os.close(write)


def test_web_pages_get_nothing_from_a_server_without_a_token(server: Server) -> None:
    """Neither by a form, which a browser sends to any server, nor by a name that was made to point to this machine."""
    form = {"files": {"request": (None, "{}")}}
    for host, more, status in (("localhost", {}, 200), ("127.0.0.1:80", {}, 200), ("[::1]:80", {}, 200), ("evil.example", {}, 400),
                               ("127.0.0.1.evil.example", {}, 400), ("[", {}, 400), ("localhost", {"Origin": "null"}, 400)):  # fmt: skip
        found = httpx.get(f"{server.url}/v1/info", headers={"Host": host, **more}, trust_env=False)
        assert found.status_code == status, host
    found = httpx.post(f"{server.url}/v1/score", headers={"Origin": "http://evil.example"}, trust_env=False, **form)
    assert found.status_code == 400 and "answers only programs" in found.json()["error"]["message"]


def test_a_stopped_server_ends_what_it_began_and_what_comes_later_has_failed(tmp_path: Path) -> None:
    server = Server(tmp_path, bright=", pause: 1")
    server.start()
    server.wait()
    reward = RemoteReward(url=server.url, reward="bright", deadline=60)
    late = RemoteReward(url=server.url, reward="bright", backoff=0.05, deadline=0.5)
    reward.setup(CPU)
    late.setup(CPU)
    given = grey("p", 1, 2)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(reward.score, given)
        while not server.lives():
            time.sleep(0.05)
        code = server.stop()
        assert found.result() == [1.0, 2.0] and reward.retries == 0
    assert code in (0, -15) and "Traceback" not in server.said.read_text()
    scores = RewardSet({"bright": (late, 1.0)}).score(samples(3))
    assert not (scores.status == OK).any() and np.isnan(scores.values).all()
    assert "ConnectError" in scores.messages[0] and "tries" in scores.messages[0]
    with pytest.raises(UserError, match="mmrl serve-rewards CONFIG"):
        RemoteReward(url=server.url, reward="bright", patience=0).setup(CPU)
