"""The real reward server as a process: 2,000 pictures through faults and a restart, and clients that mean harm."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from mmrl.errors import UserError
from mmrl.reward import RewardSet
from mmrl.rewards.remote.client import RemoteReward
from mmrl.rollout import OK, Prompt, Sample
from tests.end_to_end.faulty_proxy import FAULTS, FaultyProxy

REWARD = '''
from pathlib import Path

def brightness(samples, log):
    """Mean pixel of each picture; notes which prompts it scored."""
    with Path(log).open("a") as file:
        file.writelines(f"{sample.prompt.id}\\n" for sample in samples)
    return [float(sample.images[0].mean()) for sample in samples]
'''
PICTURES, BATCH = 2000, 20
TOKEN = "a token for tests"


class Server:
    """`mmrl serve-rewards` in a process of its own, on a port that stays the same when it is started again."""

    def __init__(self, folder: Path, more: str = "", env: dict[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "reward.py").write_text(REWARD)
        self.log = folder / "scored.txt"
        self.config = folder / "serve.yaml"
        self.config.write_text(
            f"rewards:\n  bright: {{name: 'reward.py:brightness', log: {self.log}}}\n"
            f"serve: {{port: {self.port}, device: cpu{more}}}\n"
        )
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mmrl", "serve-rewards", str(self.config)]
        self.process = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(Prompt(f"p{i}", "a picture"), images=(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),))
        for i in range(count)
    ]


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
            encoding=encoding,
            read_timeout=30,
            backoff=0.05,
            deadline=120,
        )
        reward.setup(torch.device("cpu"))
        given = samples(PICTURES)
        scores = RewardSet({"bright": (reward, 1.0)}).score(given)
        assert (scores.status == OK).all(), scores.messages[:3]
        wanted = [float(sample.images[0].mean()) for sample in given]
        np.testing.assert_allclose(scores.values[:, 0], wanted)
        assert set(proxy.met) == set(FAULTS) and restarted and reward.retries >= len(FAULTS)
        scored = server.log.read_text().split()
        assert set(scored) == {sample.prompt.id for sample in given}
        # an answer that was lost on the way is not scored again: only what a killed server had not kept is
        again = len(scored) - len(set(scored))
        assert again <= 8 * BATCH, f"{again} pictures were scored again"
        print(f"{encoding}: {proxy.count} requests for {PICTURES} pictures, {dict(proxy.met)}, {again} scored again")
    finally:
        proxy.close()
        server.kill()


def test_a_server_that_stays_away_is_a_failure_of_the_samples(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    server.wait()
    reward = RemoteReward(url=f"http://127.0.0.1:{server.port}", reward="bright", backoff=0.05, deadline=0.5)
    reward.setup(torch.device("cpu"))
    server.kill()
    scores = RewardSet({"bright": (reward, 1.0)}).score(samples(3))
    assert not (scores.status == OK).any() and np.isnan(scores.values).all()
    assert "ConnectError" in scores.messages[0] and "tries" in scores.messages[0]
    absent = RemoteReward(url=f"http://127.0.0.1:{server.port}", reward="bright", patience=0)
    with pytest.raises(UserError, match="mmrl serve-rewards CONFIG"):
        absent.setup(torch.device("cpu"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "media").mkdir()
    (folder / "secret.png").write_bytes(png(4, 4))
    (folder / "media" / "ok.png").write_bytes(png(4, 4))
    more = ", max_bytes: 200000, max_pixels: 1000000, max_batch: 8, media_root: media"
    server = Server(folder, more, {"MMRL_REWARD_TOKEN": TOKEN})
    server.start()
    server.wait()
    yield server
    server.kill()


def png(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that unpacks to side x side pixels."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" * (side // 8 + 1)) * side, 9)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", rows) + piece(b"IEND", b"")


def request(**medium: Any) -> dict[str, Any]:
    own = {"kind": "image", "mime": "image/png"} | medium
    if not {"data", "uri", "part"} & set(own):
        own["data"] = base64.b64encode(png(4, 4)).decode()
    sample = {"id": "0", "prompt": "x", "media": [own]}
    return {"protocol": "mmrl-reward/1", "request_id": os.urandom(8).hex(), "reward": "bright", "samples": [sample]}


def post(server: Server, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
    return httpx.post(
        f"http://127.0.0.1:{server.port}/v1/score", headers=headers, timeout=30, trust_env=False, **options
    )


def test_hostile_clients_get_a_4xx_and_the_server_lives(guarded: Server) -> None:
    good = post(guarded, json=request())
    assert good.status_code == 200 and good.json()["results"][0]["score"] == 9.0
    huge = {"data": base64.b64encode(b"x" * 300_000).decode()}
    cases: dict[str, tuple[httpx.Response, int]] = {
        "no token": (post(guarded, json=request(), headers={"Authorization": ""}), 401),
        "wrong token": (post(guarded, json=request(), headers={"Authorization": "Bearer no"}), 401),
        "oversized body": (post(guarded, json=request(**huge)), 413),
        "oversized stream": (post(guarded, content=(b"x" * 50_000 for _ in range(10)), headers=JSON), 413),
        "zip bomb": (post(guarded, json=request(data=base64.b64encode(bomb(30_000)).decode())), 400),
        "path traversal": (post(guarded, json=request(uri="../secret.png")), 400),
        "absolute path": (post(guarded, json=request(uri="/etc/passwd")), 400),
        "encoded traversal": (post(guarded, json=request(uri="file://../secret.png")), 400),
        "pickle body": (
            post(guarded, content=b"\x80\x04\x95", headers={"Content-Type": "application/octet-stream"}),
            400,
        ),
        "pickle as json": (post(guarded, content=b"\x80\x04\x95", headers=JSON), 400),
        "deep json": (post(guarded, content=b"[" * 100_000, headers=JSON), 400),
        "unknown reward": (post(guarded, json=request() | {"reward": "other"}), 422),
        "unknown field": (post(guarded, json=request() | {"extra": 1}), 400),
        "other protocol": (post(guarded, json=request() | {"protocol": "mmrl-reward/9"}), 400),
        "too many samples": (
            post(guarded, json=request() | {"samples": [{"id": str(i), "prompt": ""} for i in range(9)]}),
            413,
        ),
        "an id twice": (post(guarded, json=request() | {"samples": [{"id": "0", "prompt": ""}] * 2}), 400),
        "no picture": (post(guarded, json=request(data=base64.b64encode(b"GIF89a").decode())), 400),
        "not base64": (post(guarded, json=request(data="%%%")), 400),
        "missing part": (post(guarded, json=request(part="p")), 400),
        "broken multipart": (
            post(guarded, content=b"--x\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"}),
            400,
        ),
    }
    wrong = {
        name: (reply.status_code, reply.text[:200])
        for name, (reply, code) in cases.items()
        if reply.status_code != code
    }
    assert not wrong
    for name, (reply, _) in cases.items():
        assert reply.json()["error"]["message"], name
    assert guarded.alive and post(guarded, json=request(uri="ok.png")).json()["results"][0]["score"] == 9.0
    body = request()
    assert post(guarded, json=body).json() == post(guarded, json=body).json()
    assert post(guarded, json=body | {"samples": [{"id": "9", "prompt": "y"}]}).status_code == 409


JSON = {"Content-Type": "application/json"}


def test_a_server_for_others_needs_a_token(tmp_path: Path) -> None:
    server = Server(tmp_path, ", host: 0.0.0.0")
    env = {name: value for name, value in server.env.items() if name != "MMRL_REWARD_TOKEN"}
    command = [sys.executable, "-m", "mmrl", "serve-rewards", str(server.config)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode != 0 and "bearer token is needed" in found.stderr + found.stdout


def test_problems_of_a_config_have_their_line(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("rewards:\n  a: {name: jpeg_compressibilty}\nserve: {prot: 1}\n")
    command = [sys.executable, "-m", "mmrl", "serve-rewards", str(tmp_path / "serve.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode != 0 and "serve.yaml:3: serve.prot" in found.stderr + found.stdout


def test_json_numbers_are_finite_on_the_wire() -> None:
    from pydantic import ValidationError

    from mmrl.rewards.remote.contract import Result, ScoreResponse

    with pytest.raises(ValidationError):
        Result(id="a", status="ok", score=float("nan"))
    answer = {"protocol": "mmrl-reward/1", "request_id": "a", "timing_ms": 1,
              "model": {"name": "a", "revision": "1", "sha256": "0"},
              "results": [{"id": "a", "status": "ok", "score": float("nan")}]}  # fmt: skip
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(json.dumps(answer))
