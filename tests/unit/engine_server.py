"""A small server that speaks what the client uses of vLLM's HTTP interface, on loopback, with a model that really samples.

Answers are drawn by the plain forward pass of transformers, another path than the trainer's packed one, and published weights
are really read from their files. `faults` are statuses that the next requests get instead of an answer, `lost` paths whose next
answer is an error although the server did as it was told; `spoil` may change a chat answer before it is sent; `asked` remembers
what was asked; without `dev` there are none of the paths of vLLM's development mode.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image

from mmrl.vlm import generic
from mmrl.vlm.encoded import EncodedPrompt
from mmrl.vlm.tiny import tiny_qwen3vl

BASE = "tiny"


class EngineServer:
    """`with EngineServer() as server: server.url`."""

    def __init__(self, seed: int = 0) -> None:
        self.model, self.processor = tiny_qwen3vl(seed)
        self.adapters: dict[str, Any] = {}
        self.version = "default"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[int] = []
        self.lost: list[str] = []
        self.dev = True
        self.spoil: Callable[[dict[str, Any]], None] = lambda answer: None
        self.reloads = True
        self.lock = threading.Lock()

    def __enter__(self) -> EngineServer:
        handler = type("Bound", (Handler,), {"engine": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As if the server had died."""
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
        self.http.server_close()

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    # -- what it does

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.faults:
            return self.faults.pop(0), {"error": "out of order"}
        routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/v1/models": self.models,
            "/v1/chat/completions": self.chat,
            "/v1/load_lora_adapter": self.load_adapter,
            "/v1/unload_lora_adapter": self.unload_adapter,
            "/collective_rpc": self.rpc,
            "/update_weight_version": self.update_version,
            "/weight_info": lambda body: {"weight_version": self.version},
            "/reset_prefix_cache": lambda body: None,
            "/reset_encoder_cache": lambda body: None,
        }
        if path not in routes or (not self.dev and not path.startswith("/v1/")):
            return 404, {"detail": "Not Found"}
        found = routes[path](body)
        if path in self.lost:
            self.lost.remove(path)
            return 502, {"error": "the answer was lost"}
        return found if isinstance(found, tuple) else (200, found)

    def models(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = [{"id": BASE, "root": BASE, "parent": None}, *({"id": n, "parent": BASE} for n in self.adapters)]
        return {"object": "list", "data": ids}

    def load_adapter(self, body: dict[str, Any]) -> str | tuple[int, Any]:
        from peft import PeftModel

        if body["lora_name"] in self.adapters:
            return 400, {"error": f"The lora adapter '{body['lora_name']}' has already been loaded."}
        found = PeftModel.from_pretrained(copy.deepcopy(self.model), body["lora_path"])
        self.adapters[body["lora_name"]] = found.merge_and_unload().eval()
        return f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def unload_adapter(self, body: dict[str, Any]) -> str | tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": f"The lora adapter '{body['lora_name']}' cannot be found."}
        return "Success: LoRA adapter removed successfully."

    def rpc(self, body: dict[str, Any]) -> dict[str, Any]:
        from transformers import AutoModelForImageTextToText

        assert body["method"] == "reload_weights"
        if self.reloads:
            path = body["kwargs"]["weights_path"]
            found: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
            self.model = found.eval()
        return {"results": [None]}

    def update_version(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version = body["new_version"]
        return {"success": True, "new_version": self.version}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.read(body)
        model = self.model if body["model"] == BASE else self.adapters[body["model"]]
        seeds = [body["seed"] + k for k in range(body["n"])]
        written = generic.generate(
            model, [prompt], [len(seeds)], seeds, max_new_tokens=body["max_completion_tokens"],
            temperature=body["temperature"], eos_ids=body["stop_token_ids"], pad_id=0,
        )  # fmt: skip
        choices = []
        for index, (tokens, log_prob, mask) in enumerate(
            zip(written.tokens, written.log_prob, written.mask, strict=True)
        ):
            content = [{"token": f"token_id:{t}", "logprob": p} for t, p in
                       zip(tokens[mask].tolist(), log_prob[mask].tolist(), strict=True)]  # fmt: skip
            choices.append({
                "index": index, "token_ids": tokens[mask].tolist(), "logprobs": {"content": content},
                "message": {"role": "assistant", "content": self.processor.tokenizer.decode(tokens[mask])},
                "finish_reason": "stop" if written.finished[index] else "length",
            })  # fmt: skip
        answer = {"model": body["model"], "prompt_token_ids": prompt.input_ids.tolist(), "choices": choices}
        self.spoil(answer)
        return answer

    def read(self, body: dict[str, Any]) -> EncodedPrompt:
        images, messages = [], []
        for message in body["messages"]:
            parts = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                    images.append(Image.open(io.BytesIO(base64.b64decode(data))))
                    part = {"type": "image"}
                parts.append(part)
            messages.append({**message, "content": parts})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, **body["chat_template_kwargs"])
        found = self.processor(
            text=[text], return_tensors="pt", **({"images": images} if images else {}),
            **body.get("mm_processor_kwargs", {}),
        )  # fmt: skip
        media = {k: v for k, v in found.items() if k in ("pixel_values", "image_grid_thw")}
        return EncodedPrompt(found["input_ids"][0], found["mm_token_type_ids"][0].long(), media)


class Handler(BaseHTTPRequestHandler):
    engine: EngineServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.serve({})

    def do_POST(self) -> None:
        self.serve(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"))

    def serve(self, body: dict[str, Any]) -> None:
        with self.engine.lock:
            self.engine.asked.append((self.path, body | {"authorization": self.headers.get("Authorization")}))
            status, found = self.engine.answer(self.path, body)
        data = found.encode() if isinstance(found, str) else b"" if found is None else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
