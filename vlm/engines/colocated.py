"""Answers from a vLLM inside the training process, on the same GPU: it sleeps while the trainer works."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt, PrivateAttr

from mmrl.errors import UserError
from mmrl.rollout import Draw
from mmrl.vlm.answers import Written
from mmrl.vlm.engines.base import RolloutEngine
from mmrl.vlm.engines.request import Choice, checked, ending_of, request_of
from mmrl.vlm.engines.weights import Versions
from mmrl.vlm.payload import Asked

if TYPE_CHECKING:
    from mmrl.vlm.policy import VlmPolicy


class Vllm(RolloutEngine):
    """One vLLM per process; whole models are loaded into it, a LoRA merged."""

    kind: Literal["vllm"]
    gpu_memory: float = Field(default=0.4, gt=0, lt=1)
    """Share of the GPU's memory that the engine may take while it is awake."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and answer; default: what the model was made for."""
    eager: bool = False
    """Without CUDA graphs: starts sooner, writes slower."""
    weights_dir: str | None = None
    """Where weights are written for the engine to read, below it a folder per process; default: a temporary folder."""
    mm_processor_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options of the engine's processor, such as `{max_pixels: 401408}`."""

    _llm: Any = PrivateAttr(default=None)
    _asleep: bool = PrivateAttr(default=False)
    _versions: Versions | None = PrivateAttr(default=None)

    def check(self) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError("policy.engine vllm needs vLLM, which is not installed: pip install 'mmrl[vllm]'")
        if not torch.cuda.is_available():
            raise UserError("policy.engine vllm needs a CUDA device, and torch finds none here; use {kind: own}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "policy.engine vllm runs with one process; for several, start a server and use {kind: vllm_server}"
            )

    def publish(self, policy: VlmPolicy, version: str, writes: bool) -> None:
        root = None if self.weights_dir is None else os.path.join(self.weights_dir, os.environ.get("RANK", "0"))
        self._versions = self._versions or Versions(root)
        folder = self._versions.write(policy, version, adapter=False)
        if self._llm is None:
            self._llm = self._start(policy, str(folder))
        else:
            self._wake()
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._llm.reset_prefix_cache()
        self._versions.taken(folder)

    def _start(self, policy: VlmPolicy, folder: str) -> Any:
        from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

        return LLM(
            model=folder,
            dtype=policy.dtype,
            gpu_memory_utilization=self.gpu_memory,
            max_model_len=self.max_model_len,
            enforce_eager=self.eager,
            enable_sleep_mode=True,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            mm_processor_kwargs=self.mm_processor_kwargs or None,
            seed=0,
        )

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what the update left in torch's pool is the engine's to use
            self._llm.wake_up()
            self._asleep = False

    def write(self, policy: VlmPolicy, draws: Sequence[Draw], asked: Sequence[Asked], plan: Any) -> Written:
        if self._llm is None:
            raise UserError("no weights were published to the inference engine before this rollout")
        from vllm import SamplingParams  # type: ignore[import-not-found,unused-ignore]

        self._wake()
        ending = ending_of(policy, plan)
        requests = [request_of(policy, draws, one) for one in asked]
        options = [
            SamplingParams(
                n=one.count, seed=one.seed, temperature=plan.temperature, max_tokens=ending.most, logprobs=0,
                stop_token_ids=sorted(ending.eos), skip_special_tokens=False, detokenize=False,
            )
            for one in requests
        ]  # fmt: skip
        said = self._llm.chat(
            [one.with_pictures(_picture) for one in requests],
            options,
            use_tqdm=False,
            chat_template_kwargs=dict(policy.chat),
            mm_processor_kwargs=self.mm_processor_kwargs or None,
        )
        self._llm.sleep(level=1)
        self._asleep = True
        found = [
            answer
            for request, one in zip(requests, said, strict=True)
            for answer in checked(request, one.prompt_token_ids, [_choice(own) for own in one.outputs], ending)
        ]
        tokens, log_probs, finished = zip(*found, strict=True)
        return Written(list(tokens), list(log_probs), torch.tensor(finished))


def _choice(said: Any) -> Choice:
    tokens = list(said.token_ids)
    steps = said.logprobs or []
    log_probs = [step[token].logprob for token, step in zip(tokens, steps, strict=False) if token in step]
    return Choice(tokens, log_probs, said.finish_reason)


def _picture(pixels: np.ndarray) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": Image.fromarray(pixels)}
