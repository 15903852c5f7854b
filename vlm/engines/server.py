"""Answers from a `vllm serve` that somebody started, through its OpenAI-compatible interface.

What is used of vLLM: `/v1/chat/completions` with `return_token_ids` and `logprobs`, `/v1/models`, for a LoRA
`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, for whole models `/collective_rpc` with the worker's `reload_weights`,
`/update_weight_version`, `/weight_info` and the resets of the caches.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from mmrl.errors import UserError
from mmrl.rollout import Draw
from mmrl.vlm.answers import Written
from mmrl.vlm.engines.base import RolloutEngine
from mmrl.vlm.engines.http import Client, is_loopback, require_httpx
from mmrl.vlm.engines.request import Answer, Choice, Ending, Request, checked, ending_of, request_of
from mmrl.vlm.engines.weights import Versions, is_adapter
from mmrl.vlm.payload import Asked

if TYPE_CHECKING:
    from mmrl.vlm.policy import VlmPolicy


STARTED_WITH = "default"
"""What a vLLM that loaded nothing since it was started calls its weights."""


class VllmServer(RolloutEngine):
    """A vLLM server; weights reach it as safetensors in a folder that it can read, everything else is JSON."""

    kind: Literal["vllm_server"]
    url: str = "http://127.0.0.1:8000"
    allow_remote: bool = False
    """Allow a `url` that is not this machine: prompts and pictures are sent there."""
    token_env: str | None = None
    """Environment variable that holds the server's API key."""
    model: str | None = None
    """Name under which the model is served; default: the only one that the server lists."""
    weights_dir: str | None = None
    """Where weights are written for the server to read; default: a temporary folder (of this machine)."""
    mm_processor_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Sent with every prompt: options of the server's processor, such as `{max_pixels: 401408}`."""
    concurrency: PositiveInt = 16
    """Prompts that are asked at the same time, per process."""
    timeout: PositiveFloat = 300.0
    """Seconds for one answer of the server."""
    retries: int = Field(default=4, ge=0)
    """Further tries after a lost connection, 429 and 5xx."""
    retry_wait: PositiveFloat = 0.5
    """Seconds before the first of them, doubled each time."""

    _client: Client | None = PrivateAttr(default=None)
    _versions: Versions | None = PrivateAttr(default=None)
    _base: str | None = PrivateAttr(default=None)
    _version: str | None = PrivateAttr(default=None)
    _adapter: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _stays_here(self) -> VllmServer:
        if not is_loopback(self.url) and not self.allow_remote:
            raise ValueError(
                f"url {self.url} is not this machine, and prompts and pictures would be sent there; set allow_remote: true to "
                "allow that"
            )
        return self

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.url, self.timeout, self.retries, self.retry_wait, self.token_env)
        return self._client

    def check(self) -> None:
        require_httpx()
        self._base = self._served()

    def _served(self) -> str:
        """The id of the served model, adapters left out."""
        listed = (self.client.get("/v1/models") or {}).get("data", [])
        ids = [str(entry.get("id")) for entry in listed if entry.get("parent") is None]
        if self.model is not None and self.model not in ids:
            raise UserError(f"{self.url} serves no model '{self.model}'; it has: {', '.join(ids) or 'none'}")
        if self.model is None and len(ids) != 1:
            raise UserError(f"{self.url} serves {', '.join(ids) or 'no model'}; say which in policy.engine.model")
        return self.model or ids[0]

    # -- weights

    def publish(self, policy: VlmPolicy, version: str, writes: bool) -> None:
        self._base = self._base or self._served()
        adapter, old = is_adapter(policy), self._adapter
        if writes:
            self._versions = self._versions or Versions(self.weights_dir)
            if adapter:
                self._check_base()
            folder = self._versions.write(policy, version, adapter)
            if adapter:
                self._load_adapter(version, str(folder))
            else:
                self._reload(str(folder), version)
            if old is not None:
                self._unload_adapter(old)
            self._versions.taken(folder)
        self._version, self._adapter = version, version if adapter else None

    def _load_adapter(self, version: str, folder: str) -> None:
        try:
            self.client.post("/v1/load_lora_adapter", {"lora_name": version, "lora_path": folder})
        except (
            UserError
        ):  # another try is refused where the first was heard and its answer lost; no version comes twice
            if version not in self._listed():
                raise

    def _unload_adapter(self, version: str) -> None:
        try:
            self.client.post("/v1/unload_lora_adapter", {"lora_name": version})
        except UserError:
            if version in self._listed():
                raise

    def _listed(self) -> list[str]:
        """Ids of the served model and of its adapters."""
        return [str(entry.get("id")) for entry in (self.client.get("/v1/models") or {}).get("data", [])]

    def _check_base(self) -> None:
        """Raises UserError when an adapter would lie on other weights than the server was started with."""
        # without this path it has no /collective_rpc either, by which runs change the base
        found = (self.client.get("/weight_info", optional=True) or {}).get("weight_version", STARTED_WITH)
        if found != STARTED_WITH:
            raise UserError(
                f"{self.url} holds base weights of version {found!r}, which another run left there, and the adapter was trained on "
                "those of policy.path; start the server anew"
            )

    def _reload(self, folder: str, version: str) -> None:
        self.client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        for cache in ("/reset_prefix_cache", "/reset_encoder_cache"):  # both hold what the old weights computed
            self.client.post(cache)
        self.client.post("/update_weight_version", {"new_version": version})

    def _check_version(self) -> None:
        """Raises UserError when the server says that it holds other weights than were published last."""
        if self._version is None:
            raise UserError("no weights were published to the inference engine before this rollout")
        if self._adapter is not None:
            listed = self._listed()
            if self._adapter not in listed:
                raise UserError(
                    f"{self.url} has no adapter '{self._adapter}', which holds the trainer's weights; it has: {', '.join(listed)}"
                )
            self._check_base()
            return
        found = (self.client.get("/weight_info") or {}).get("weight_version")
        if found != self._version:
            raise UserError(
                f"{self.url} holds weights of version {found!r} and the trainer is at {self._version!r}: it was restarted, or "
                "somebody else updates it"
            )

    # -- answers

    def write(self, policy: VlmPolicy, draws: Sequence[Draw], asked: Sequence[Asked], plan: Any) -> Written:
        self._check_version()
        ending = ending_of(policy, plan)
        requests = [request_of(policy, draws, one) for one in asked]
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self._answers, one, policy, plan.temperature, ending) for one in requests]
            try:
                found = [answer for one in waiting for answer in one.result()]
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure nothing more is asked
        self._check_version()
        tokens, log_probs, finished = zip(*found, strict=True)
        return Written(list(tokens), list(log_probs), torch.tensor(finished))

    def _answers(self, request: Request, policy: VlmPolicy, temperature: float, ending: Ending) -> list[Answer]:
        name = self._adapter or self._base
        body = {
            "model": name,
            "messages": request.with_pictures(picture),
            "n": request.count,
            "seed": request.seed,
            "temperature": temperature,
            "max_completion_tokens": ending.most,
            "stop_token_ids": sorted(ending.eos),
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "chat_template_kwargs": dict(policy.chat),
            # a server's own defaults, from the model's generation_config.json, would bend the distribution
            "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }  # fmt: skip
        if self.mm_processor_kwargs:
            body["mm_processor_kwargs"] = self.mm_processor_kwargs
        said = self.client.post("/v1/chat/completions", body) or {}
        if said.get("model") != name:
            raise UserError(f"{self.url} answers for the model '{said.get('model')}', but '{name}' was asked")
        choices = sorted(said.get("choices") or [], key=lambda choice: choice["index"])
        return checked(request, said.get("prompt_token_ids"), [_choice(one) for one in choices], ending)


def _choice(said: dict[str, Any]) -> Choice:
    content = (said.get("logprobs") or {}).get("content") or []
    return Choice(said.get("token_ids") or (), [token.get("logprob") for token in content], said.get("finish_reason"))


def picture(pixels: np.ndarray) -> dict[str, Any]:
    """A part of a message that holds `pixels` uint8 (H, W, 3), as lossless PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
