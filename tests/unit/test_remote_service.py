"""A reward server without HTTP: what it remembers, what it says of its models, and that a request is scored once."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from torch import nn

from mmrl.errors import UserError
from mmrl.reward import Reward
from mmrl.reward.fingerprint import fingerprint, preprocessing
from mmrl.rewards.function import FunctionReward
from mmrl.rewards.remote import server
from mmrl.rewards.remote.contract import RequestSample, ScoreRequest
from mmrl.rewards.remote.intake import VALUES, message
from mmrl.rewards.remote.media import HEADER, Limits, Refused, unpack
from mmrl.rewards.remote.serve import serve
from mmrl.rewards.remote.service import Answers, Service, ServiceError
from mmrl.rollout import Sample

CPU = torch.device("cpu")


class Processor:
    """As those of transformers: says its settings as JSON."""

    def __init__(self, mean: float) -> None:
        self.mean = mean

    def to_json_string(self) -> str:
        return json.dumps({"mean": self.mean})


class Detector:
    """A helper that keeps its model in an attribute."""

    def __init__(self, weight: float) -> None:
        self.models = {"a": [nn.Linear(1, 1, bias=False)]}
        with torch.no_grad():
            self.models["a"][0].weight.fill_(weight)
        self.lock = threading.Lock()


class Counted(Reward):
    """1 for everything; counts what it scores, and how many threads are in it at a time."""

    weight: float = 0.0
    mean: float = 0.5
    _deep: Any = PrivateAttr(default=None)
    _processor: Any = PrivateAttr(default=None)
    _seen: Any = PrivateAttr(default_factory=list)
    _inside: int = PrivateAttr(default=0)

    def setup(self, device: torch.device) -> None:
        self._deep, self._processor = Detector(self.weight), Processor(self.mean)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        self._inside += 1
        assert self._inside == 1, "two at a time"
        time.sleep(0.02)
        self._seen.extend(sample.prompt.id for sample in samples)
        self._inside -= 1
        return [1.0] * len(samples)


def request(id: str, *ids: str, **more: Any) -> ScoreRequest:
    samples = [{"id": one, "prompt": "x"} for one in ids]
    return ScoreRequest.model_validate(
        {"protocol": "mmrl-reward/1", "request_id": id, "reward": "it", "samples": samples} | more
    )


def service(reward: Reward) -> Service:
    found = Service({"it": reward}, Limits(), CPU)
    found.load()
    assert found.failure is None
    return found


def test_a_request_is_scored_once_however_many_ask_at_a_time() -> None:
    reward = Counted()
    served = service(reward)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(served.score, request(f"r{k % 3}", f"s{k % 3}"), {}, f"d{k % 3}") for k in range(24)]
        found = {(k % 3, job.result()) for k, job in enumerate(jobs)}
    assert len(found) == 3  # one answer per request, to the last digit of its time
    assert sorted(reward._seen) == ["s0", "s1", "s2"]
    with pytest.raises(ServiceError, match="was used for another request"):
        served.score(request("r0", "other"), {}, "another digest")
    assert "error" not in json.loads(served.score(request("r9", "a"), {}, "d"))["results"][0]  # defaults are not sent


def test_what_is_remembered_is_bounded() -> None:
    kept = Answers(most=3, size=100)
    for k in range(5):
        kept.put(str(k), "d", b"x" * 10)
    assert list(kept.known) == ["2", "3", "4"] and kept.held == 30
    kept.put("large", "d", b"x" * 95)
    assert list(kept.known) == ["large"] and kept.held == 95
    kept.put("larger", "d", b"x" * 500)
    assert kept.get("larger") == ("d", b"x" * 500) and kept.held == 500 and kept.get("large") is None


def test_a_model_is_known_by_class_options_code_and_weights_wherever_they_are() -> None:
    def of(reward: Reward) -> str:
        reward.setup(CPU)
        return fingerprint(reward)

    class Other(Counted):
        """Of another name."""

    assert of(Counted()) == of(Counted())
    assert of(Counted()) != of(Counted(mean=0.4))
    assert of(Counted()) != of(Other())
    changed = Counted()
    changed.setup(CPU)
    with torch.no_grad():
        changed._deep.models["a"][0].weight.add_(1e-3)
    assert fingerprint(changed) != of(Counted())


def test_a_function_that_was_edited_is_another_model(tmp_path: Any) -> None:
    import importlib.util

    found = []
    for number, body in enumerate(
        ("return [0.0] * len(samples)", "return [1.0] * len(samples)", "return [0.0] * len(samples)")
    ):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / "own_reward.py"
        file.write_text(f"def own(samples):\n    {body}\n")
        spec = importlib.util.spec_from_file_location("own_reward", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(fingerprint(FunctionReward(function=module.own)))
    assert found[0] == found[2] != found[1]


def test_preprocessing_is_known_by_the_settings_of_processors() -> None:
    def of(reward: Reward) -> str:
        reward.setup(CPU)
        return preprocessing(reward)

    assert of(Counted()) == of(Counted(weight=2.0)) != of(Counted(mean=0.4))
    info = service(Counted()).info().rewards["it"]
    assert info.preprocessing == of(Counted()) and len(info.preprocessing) == 64 and info.deterministic


def test_the_processors_of_transformers_say_the_same_in_every_process(tmp_path: Any) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

    from mmrl.reward.fingerprint import _settings

    def tokenizer(*words: str) -> Any:
        own = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token=words[0]))
        return PreTrainedTokenizerFast(tokenizer_object=own, unk_token=words[0])

    told = [_settings(one) for one in (tokenizer("a", "b"), tokenizer("a", "b"), tokenizer("a", "c"),
                                       CLIPImageProcessor(), CLIPImageProcessor(), CLIPImageProcessor(image_mean=[0, 0, 0]))]  # fmt: skip
    assert None not in told and told[0] == told[1] != told[2] and told[3] == told[4] != told[5]
    assert " at 0x" not in "".join(str(one) for one in told)
    assert _settings(nn.Linear(1, 1)) is None and _settings(object()) is None


class Telling(Reward):
    """Scores 1 and leaves on a sample what the prompt's target says."""

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        for sample in samples:
            sample.meta.update(sample.prompt.target["leave"])
        return [sample.prompt.target.get("score") for sample in samples]


def told(*targets: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    samples = [{"id": str(k), "prompt": "x", "reference": target} | more for k, target in enumerate(targets)]
    answer = service(Telling()).score(request("r", samples=samples), {}, "d")
    found: list[dict[str, Any]] = json.loads(answer)["results"]
    return found


def test_an_answer_that_was_not_found_is_told_whatever_the_status() -> None:
    found = told(
        {"leave": {"answer": None}, "score": 1.0},
        {"leave": {"answer": None}},
        {"leave": {"answer": "7"}, "score": float("1e400")},
        {"leave": {}, "score": 1.0},
        {"leave": {"answer": ["a"]}, "score": 1.0},
        {"leave": {"answer": 0}, "score": 1.0},
    )
    assert [one["status"] for one in found] == ["ok", "skipped", "error", "ok", "ok", "ok"]
    details = [one.get("detail") for one in found]
    assert details[:3] == [{"answered": True}, {"answered": True}, {"answered": True, "answer": "7"}]
    assert details[3:] == [None, None, {"answered": True, "answer": 0}]


def test_parts_of_a_score_are_told() -> None:
    found = told(
        {"leave": {"components": {"a": 1, "b": 0.25}}, "score": 1.0},
        {"leave": {}, "score": 1.0},
        {"leave": {"components": {"a": 1.0}}},
        {"leave": {"components": {"a": "x"}}, "score": 1.0},
    )
    assert [one.get("components") for one in found] == [{"a": 1.0, "b": 0.25}, None, None, None]
    assert [one["status"] for one in found] == ["ok", "ok", "skipped", "error"]
    assert "meta['components']" in found[3]["error"]["message"]


def test_what_rewards_leave_is_not_taken_from_a_request() -> None:
    for sent in ({"components": 5}, {"components": {"it": {"a": 1.0}}, "graded": {"it": "a word"}}):
        (found,) = told({"leave": {}, "score": 1.0}, output_meta=sent)
        assert found == {"id": "0", "status": "ok", "score": 1.0}


def medium(kind: str, mime: str, contents: bytes) -> RequestSample:
    given = {"kind": kind, "mime": mime, "data": base64.b64encode(contents).decode()}
    return RequestSample.model_validate({"id": "0", "prompt": "x", "media": [given]})


def test_a_body_of_small_values_is_refused_before_it_is_read() -> None:
    for text in (b"1," * VALUES + b"1", b"[[]]," * (VALUES // 3) + b"1"):
        with pytest.raises(ServiceError, match=r"more than 1048576 values") as found:
            message(b'{"a": [' + text + b"]}", Limits())
        assert found.value.problem.code == "too_large"


def test_tensors_without_contents_are_not_taken_by_the_hundred_thousand() -> None:
    with pytest.raises(Refused, match="a header of more than 1048576 bytes"):
        unpack(
            medium("latent", "application/vnd.safetensors", struct.pack("<Q", HEADER + 1) + b" " * HEADER), {}, Limits()
        )


def test_an_mp4_is_read_by_the_reader_that_no_file_can_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl import video

    def ends(path: Any) -> Any:
        raise AssertionError("some files end the process in here")

    for name in ("decord", "torchcodec"):
        monkeypatch.setitem(video.READERS, name, ends)
    video.write_video(tmp_path / "a.mp4", np.full((3, 16, 16, 3), 90, np.uint8), 4.0)
    whole = (tmp_path / "a.mp4").read_bytes()
    found = unpack(medium("video", "video/mp4", whole), {}, Limits()).video
    assert found is not None and found.shape == (3, 16, 16, 3)
    broken = whole.replace(b"VideoHandler", b"Video\xffandler")
    assert broken != whole
    with pytest.raises(Refused, match="not a readable video/mp4"):
        unpack(medium("video", "video/mp4", broken), {}, Limits())


@pytest.mark.parametrize(
    ("host", "mend"), [("127.0.0.1", "another program listens there"), ("192.0.2.1", "serve.host must be an address")]
)
def test_an_address_that_cannot_be_had_is_told_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], host: str, mend: str
) -> None:
    monkeypatch.setenv("MMRL_REWARD_TOKEN", "secret")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (tmp_path / "serve.yaml").write_text(
            f"rewards: {{a: {{name: jpeg_compressibility}}}}\nserve: {{host: {host}, port: {port}, device: cpu}}\n"
        )
        with pytest.raises(UserError, match=rf"^cannot listen at {host}:{port} \([A-Z][a-z ]+\); {mend}"):
            serve(str(tmp_path / "serve.yaml"))
    assert capfd.readouterr() == ("", "")


def test_an_answer_in_two_pieces_does_not_wait_for_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.H11Protocol, "connection_made", lambda self, transport: None)
    made: Any = server.Impatient.__new__(server.Impatient)
    made.loop = SimpleNamespace(call_later=lambda *_: None)
    with socket.socket() as one:
        made.connection_made(SimpleNamespace(get_extra_info=lambda name: one))
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
