"""Rollouts that an inference engine draws: whole runs, published weights, and everything that must stop a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_server import EngineServer

from mmrl.config import load
from mmrl.errors import ConfigError, UserError
from mmrl.rollout import Chunk, Draw, Prompt, Rollout
from mmrl.run import train
from mmrl.vlm.engines import VllmServer
from mmrl.vlm.engines.weights import is_adapter
from mmrl.vlm.models import TinyQwen3VL
from mmrl.vlm.plan import VlmPlan, VlmSampling
from mmrl.vlm.train import VlmTrainSpec

LORA = VlmTrainSpec(mode="lora", rank=4, alpha=8)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def server() -> Iterator[EngineServer]:
    with EngineServer() as running:
        yield running


def policy_of(server: EngineServer, spec: VlmTrainSpec | None = None, **options: Any) -> TinyQwen3VL:
    engine = {"kind": "vllm_server", "url": server.url, "retry_wait": 0.01, "retries": 2, **options}
    policy = TinyQwen3VL.model_validate({"engine": engine})
    policy.load("cpu")
    policy.prepare(spec or VlmTrainSpec(), False)
    return policy


def draws_of(members: range = range(3), view: str = "original") -> list[Draw]:
    picture = np.random.default_rng(0).integers(0, 256, (60, 52, 3), dtype=np.uint8)
    prompts = [Prompt("a", "Is <image> or <image> red?", (picture, picture[:28])), Prompt("b", "Answer yes or no.")]
    return [Draw(p, g, m, 100 + 10 * g + m, 7 + g, view) for g, p in enumerate(prompts) for m in members]


def roll(policy: TinyQwen3VL, draws: list[Draw] | None = None, tokens: int = 8, **plan: Any) -> Rollout:
    return policy.rollout(draws or draws_of(), VlmPlan(max_new_tokens=tokens, **plan), torch.ones(tokens).bool())


def replayed(policy: TinyQwen3VL, rollout: Rollout, view: str = "original") -> torch.Tensor:
    rows, steps = rollout.mask.shape
    return policy.replay(
        rollout, Chunk(torch.arange(rows), torch.arange(steps).expand(rows, -1)), view
    ).log_prob.detach()


def nudge(policy: TinyQwen3VL, size: float = 0.05) -> None:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=g)


# ---- what is drawn


@pytest.mark.parametrize("spec", [VlmTrainSpec(), LORA])
def test_server_and_trainer_agree_before_and_after_an_update(server: EngineServer, spec: VlmTrainSpec) -> None:
    policy = policy_of(server, spec)
    policy.publish("x-1", True)
    before = roll(policy, temperature=0.8)
    assert before.engine_log_prob is not None and before.log_prob is not before.engine_log_prob
    torch.testing.assert_close(replayed(policy, before) * before.mask, before.engine_log_prob, rtol=0, atol=1e-4)
    nudge(policy)
    policy.publish("x-2", True)
    after = roll(policy, temperature=0.8)
    torch.testing.assert_close(replayed(policy, after) * after.mask, after.engine_log_prob, rtol=0, atol=1e-4)
    gap = (replayed(policy, before) * before.mask - before.engine_log_prob).abs().max()
    assert gap > 1e-2  # the weights did change
    assert [sample.text for sample in after.samples] != [sample.text for sample in before.samples]
    assert ("/v1/load_lora_adapter" in server.paths()) == (spec is LORA)
    assert ("/collective_rpc" in server.paths()) == (spec is not LORA)
    assert len(server.adapters) == (1 if spec is LORA else 0)  # the old one is gone


def test_a_sample_depends_on_its_group_and_number_alone(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    whole = [sample.text for sample in roll(policy).samples]
    again = [sample.text for sample in roll(policy, draws_of(range(1, 3))).samples]
    assert again == [*whole[1:3], *whole[4:6]]
    assert len(set(whole)) == 6


def test_a_group_is_one_request(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    roll(policy)
    asked = [body for path, body in server.asked if path == "/v1/chat/completions"]
    assert [body["n"] for body in asked] == [3, 3]
    assert sorted(json.dumps(body).count("data:image/png") for body in asked) == [0, 2]


@pytest.mark.parametrize("view", ["noisy", "masked"])
def test_draws_through_a_view_are_drawn_through_it(server: EngineServer, view: str) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    rollout = roll(policy, draws_of(view=view))
    torch.testing.assert_close(
        replayed(policy, rollout, view) * rollout.mask, rollout.engine_log_prob, rtol=0, atol=1e-4
    )
    assert (replayed(policy, rollout) * rollout.mask - rollout.log_prob).abs().max() > 1e-3


def test_evaluation_asks_the_policy_itself(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.generate(draws_of(), VlmSampling(max_new_tokens=4))
    assert server.asked == []


def test_a_lora_on_the_tower_travels_as_a_whole_model(server: EngineServer) -> None:
    tower = LORA.model_copy(update={"targets": ("q_proj", "qkv")})
    policy = policy_of(server, tower)
    nudge(policy)
    assert not is_adapter(policy) and is_adapter(policy_of(server, LORA))
    policy.publish("x-1", True)
    rollout = roll(policy)
    torch.testing.assert_close(replayed(policy, rollout) * rollout.mask, rollout.engine_log_prob, rtol=0, atol=1e-4)


def test_only_the_last_version_stays_on_the_disk(server: EngineServer, tmp_path: Path) -> None:
    policy = policy_of(server, weights_dir=str(tmp_path))
    for version in ("x-1", "x-2", "x-3"):
        policy.publish(version, True)
    assert [folder.name for folder in tmp_path.iterdir()] == ["x-3"]
    assert list((tmp_path / "x-3").glob("*.safetensors")) and not list(tmp_path.rglob("*.bin"))


# ---- what stops a run


def test_stale_weights_stop_the_run(server: EngineServer) -> None:
    policy = policy_of(server)
    with pytest.raises(UserError, match="no weights were published"):
        roll(policy)
    policy.publish("x-1", True)
    roll(policy)
    server.version = "someone-else-4"
    with pytest.raises(UserError, match="holds weights of version 'someone-else-4' and the trainer is at 'x-1'"):
        roll(policy)
    policy.publish("x-2", False)  # the one that writes did not come so far
    with pytest.raises(UserError, match="the trainer is at 'x-2'"):
        roll(policy)


def test_weights_that_change_during_a_rollout_stop_the_run(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)

    def restarted(answer: dict[str, Any]) -> None:
        server.version = "default"

    server.spoil = restarted
    with pytest.raises(UserError, match="version 'default'"):
        roll(policy)


def test_a_lost_adapter_stops_the_run(server: EngineServer) -> None:
    policy = policy_of(server, LORA)
    policy.publish("x-1", True)
    server.adapters.clear()
    with pytest.raises(UserError, match="has no adapter 'x-1', which holds the trainer's weights; it has: tiny"):
        roll(policy)


def test_an_adapter_is_not_laid_over_what_another_run_left(server: EngineServer) -> None:
    """That would draw from a model that nobody trains: only weights a server was started with are the ones below an adapter."""
    policy = policy_of(server, LORA)
    policy.publish("x-1", True)
    roll(policy)
    server.version = "someone-else-4"
    with pytest.raises(
        UserError, match=r"base weights of version 'someone-else-4', which another run left.*start the server anew"
    ):
        roll(policy)
    with pytest.raises(UserError, match=r"base weights of version 'someone-else-4'"):
        policy_of(server, LORA).publish("y-1", True)
    assert list(server.adapters) == ["x-1"]


def test_a_server_whose_base_cannot_change_takes_adapters(server: EngineServer) -> None:
    server.dev = False
    policy = policy_of(server, LORA)
    policy.publish("x-1", True)
    assert roll(policy).engine_log_prob is not None


def test_an_adapter_whose_answer_was_lost_is_there(server: EngineServer) -> None:
    """The second try of what was done already is refused, and that is no failure; what was not done is one."""
    policy = policy_of(server, LORA)
    server.lost = ["/v1/load_lora_adapter"]
    policy.publish("x-1", True)
    server.lost = ["/v1/unload_lora_adapter"]
    policy.publish("x-2", True)
    assert list(server.adapters) == ["x-2"] and server.lost == []
    roll(policy)
    server.load_adapter = lambda body: (400, {"error": "no room"})  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no room"):
        policy.publish("x-3", True)
    del server.load_adapter
    server.unload_adapter = lambda body: (400, {"error": "in use"})  # type: ignore[method-assign]
    with pytest.raises(UserError, match="in use"):
        policy.publish("x-3", True)


def test_passing_errors_are_tried_again(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    calm = roll(policy)
    server.faults = [500, 429]
    again = roll(policy)
    assert server.faults == []
    assert torch.equal(again.log_prob, calm.log_prob)
    server.faults = [500] * 3
    with pytest.raises(UserError, match=r"does not work, 3 tries in a row; at last: it answers 500: .*out of order"):
        roll(policy)


def test_lasting_errors_are_told_at_once(server: EngineServer) -> None:
    policy = policy_of(server)
    server.faults = [404]
    with pytest.raises(UserError, match=r"/v1/models: it answers 404"):
        policy.publish("x-1", True)
    policy.publish("x-1", True)
    server.faults = [404]
    with pytest.raises(
        UserError, match=r"/weight_info: it answers 404: .*; start the server with VLLM_SERVER_DEV_MODE=1"
    ):
        roll(policy)


def test_a_dead_server_stops_the_run(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    server.stop()
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/weight_info does not work, 3 tries in a row; at last: Connect"):
        roll(policy)


def fewer(answer: dict[str, Any]) -> None:
    answer["choices"].pop()


def without_ids(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"] = None


def not_finite(answer: dict[str, Any]) -> None:
    answer["choices"][1]["logprobs"]["content"][0]["logprob"] = math.nan


def impossible(answer: dict[str, Any]) -> None:
    answer["choices"][1]["logprobs"]["content"][0]["logprob"] = -9999.0


def one_less(answer: dict[str, Any]) -> None:
    answer["choices"][1]["logprobs"]["content"].pop()


def other_model(answer: dict[str, Any]) -> None:
    answer["model"] = "llama"


def other_prompt(answer: dict[str, Any]) -> None:
    answer["prompt_token_ids"].insert(2, 5)


def old_server(answer: dict[str, Any]) -> None:
    del answer["prompt_token_ids"]


def no_end(answer: dict[str, Any]) -> None:
    choice = answer["choices"][0]
    choice["token_ids"], choice["finish_reason"] = [5], "abort"
    del choice["logprobs"]["content"][1:]


def goes_on(answer: dict[str, Any]) -> None:
    choice = answer["choices"][0]
    for key, value in (("token_ids", [5] * 9), ("logprobs", {"content": [{"logprob": -1.0}] * 9})):
        choice[key] = value


def outside(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"][0] = 400


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (fewer, "3 samples were asked for, and 2 came"),
        (without_ids, r"tokens are missing \(token_ids\)"),
        (not_finite, "a log-prob is nan"),
        (impossible, "a log-prob is -9999.0"),
        (one_less, r"\d+ tokens came with \d+ log-probs"),
        (other_model, "answers for the model 'llama', but 'tiny' was asked"),
        (
            other_prompt,
            r"it read \d+ tokens and the trainer \d+, different from token 2 on: both need the same processor",
        ),
        (old_server, "does not say which tokens it read"),
        (no_end, r"stops after 1 tokens without an end \(abort\)"),
        (goes_on, "goes on after its end"),
        (outside, "token ids must be integers from 0 to 399"),
    ],
)
def test_an_answer_that_cannot_be_trained_on(server: EngineServer, spoil: Any, message: str) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    server.spoil = spoil
    with pytest.raises(UserError, match=message):
        roll(policy)


def test_a_video_is_refused(server: EngineServer) -> None:
    policy = policy_of(server)
    policy.publish("x-1", True)
    frames = np.zeros((4, 56, 56, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="prompt 'v' has a video"):
        roll(policy, [Draw(Prompt("v", "What?", (frames,), meta={"fps": 2}), 0, 0, 1, 1)])


# ---- options


def test_another_machine_needs_leave() -> None:
    with pytest.raises(ValueError, match=r"url http://10.0.0.3:8000 is not this machine"):
        VllmServer(kind="vllm_server", url="http://10.0.0.3:8000")
    with pytest.raises(ValueError, match="is not this machine"):
        VllmServer(kind="vllm_server", url="http://127.0.0.1.example.org:8000")
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        VllmServer(kind="vllm_server", url="localhost:8000")
    for url in ("http://localhost:8000", "http://[::1]:8000", "https://127.0.0.2"):
        VllmServer(kind="vllm_server", url=url)
    VllmServer(kind="vllm_server", url="http://10.0.0.3:8000", allow_remote=True)


def test_the_key_comes_from_the_environment(server: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_ENGINE", "abc")
    policy_of(server, token_env="OF_THE_ENGINE").publish("x-1", True)
    assert {body["authorization"] for _, body in server.asked} == {"Bearer abc"}
    monkeypatch.delenv("OF_THE_ENGINE")
    with pytest.raises(UserError, match="the environment variable OF_THE_ENGINE is not set"):
        policy_of(server, token_env="OF_THE_ENGINE").publish("x-1", True)


def test_the_model_is_named_where_there_are_several(server: EngineServer) -> None:
    with pytest.raises(UserError, match="serves no model 'qwen'; it has: tiny"):
        policy_of(server, model="qwen").publish("x-1", True)
    policy_of(server, model="tiny").publish("x-1", True)


def test_without_httpx_the_extra_is_named(server: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UserError, match=r"needs httpx, which is not installed: pip install 'mmrl\[serve\]'"):
        policy_of(server).check_loaded(VlmTrainSpec(), VlmPlan())


def test_colocated_needs_vllm_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TinyQwen3VL.model_validate({"engine": {"kind": "vllm"}})
    policy.load("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs vLLM, which is not installed: pip install 'mmrl\[vllm\]'"):
        policy.check_loaded(VlmTrainSpec(), VlmPlan())
    policy.check_loaded(None, VlmSampling())  # evaluation needs no engine
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device"):
        policy.check_loaded(VlmTrainSpec(), VlmPlan())


# ---- whole runs

CONFIG = """
policy: {name: tiny_qwen3vl, engine: {kind: vllm_server, url: "URL", retries: 1, retry_wait: 0.01}}
run: {seed: 3, threads: 1, dir: "RUN"}
stages:
  rl:
    kind: rl
    steps: 3
    prompts: {name: puzzles, instruction: "", mixture: [{kind: count_shapes, size: 56}], number: 20}
    prompts_per_step: 2
    group_size: 4
    micro_batch: 4
    rollout: {max_new_tokens: 8}
    rewards: {letters: {name: "parts.py:letters"}}
    objective:
      advantage: {name: group, scale: group}
      surrogate: {name: clip, low: 0.2, high: 0.2}
      correction: {name: tis}
    optimizer: {lr: 1e-3, eps: 1e-5}
"""

PARTS = """
def letters(samples):
    return [len(set(sample.text)) / 10 - len(sample.text) / 40 for sample in samples]
"""


def config_at(folder: Path, url: str) -> str:
    (folder / "parts.py").write_text(PARTS)
    (folder / "engine.yaml").write_text(CONFIG.replace("URL", url).replace("RUN", str(folder / "run")))
    return str(folder / "engine.yaml")


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "ratio" in line]


@pytest.mark.parametrize("spec", ["{mode: full}", "{mode: lora, rank: 4}"])
def test_a_run(server: EngineServer, tmp_path: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_at(tmp_path, server.url), [f"stages.rl.train={spec}"], resume=False)
    steps = lines(tmp_path)
    assert len(steps) == 3
    for step in steps:
        assert step["ratio"] == pytest.approx(1, abs=1e-6) and step["ratio_deviation"] < 1e-6
        assert step["correction"] == pytest.approx(1, abs=1e-4) and step["rejected"] == 0
        assert 0 < step["rollout/engine_gap"] < 1e-4
        assert step["grad_norm"] > 0
    sent = [body for path, body in server.asked if path == "/v1/chat/completions"]
    assert len(sent) == 6
    versions = [body.get("new_version") or body.get("lora_name") for path, body in server.asked
                if path in ("/update_weight_version", "/v1/load_lora_adapter")]  # fmt: skip
    assert [version.split("-")[1] for version in versions] == ["1", "2", "3"]
    assert len({version.split("-")[0] for version in versions}) == 1
    said = capsys.readouterr()
    assert "start-up parity: mean |ratio - 1|" in said.out + said.err
    assert "objective.correction is null" not in said.out + said.err


def test_a_run_without_the_sync_stops(server: EngineServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rollout finds the first one's weights."""
    honest = VllmServer.publish

    def forgets(self: Any, policy: Any, version: str, writes: bool) -> None:
        honest(self, policy, version, writes and version.endswith("-1"))

    monkeypatch.setattr(VllmServer, "publish", forgets)
    with pytest.raises(UserError, match=r"holds weights of version '\w+-1' and the trainer is at '\w+-2'"):
        train(config_at(tmp_path, server.url), [], resume=False)


def test_a_server_that_only_says_it_took_the_weights_is_seen(
    server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reloads = False
    options = ["stages.rl.optimizer.lr=3e-2", "stages.rl.objective.correction=null"]
    train(config_at(tmp_path, server.url), options, resume=False)
    assert lines(tmp_path)[0]["rollout/engine_gap"] < 1e-4 < 0.05 < lines(tmp_path)[2]["rollout/engine_gap"]
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert "off the trainer's on average (more than 0.05)" in text
    assert text.count("objective.correction is null") == 1


def test_another_model_on_the_server_stops_the_run_at_once(tmp_path: Path) -> None:
    with EngineServer(seed=1) as server:
        server.reloads = False
        with pytest.raises(UserError, match=r"start-up parity: .* on average"):
            train(config_at(tmp_path, server.url), [], resume=False)


def test_options_are_checked_before_the_run(tmp_path: Path) -> None:
    config = config_at(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"policy.engine.timout=3: unknown key 'timout'; did you mean 'timeout'\?"):
        load(config, ["policy.engine.timout=3"])
    with pytest.raises(
        ConfigError, match=r"policy.engine.*: got 'vlm_server'; expected one of .*; did you mean 'vllm_server'"
    ):
        load(config, ["policy.engine={kind: vlm_server}"])
    with pytest.raises(ConfigError, match=r"policy.engine.*allow_remote: true"):
        load(config, ["policy.engine.url=http://192.168.0.7:8000"])
    with pytest.raises(ConfigError, match="correction tis needs log-probs reported by an inference engine"):
        load(config, ["policy.engine={kind: own}"])
    with pytest.raises(ConfigError, match="old_log_probs=rollout: rollout takes the engine's log-probs"):
        load(config, ["stages.rl.old_log_probs=rollout"])
    with pytest.raises(UserError, match=r"127.0.0.1:1/v1/models does not work"):
        train(config, [], resume=False)
