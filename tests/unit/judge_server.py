"""A stand-in for an OpenAI-compatible endpoint: answers come from a function of the request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmrl.rewards.judge.chat import HELLO


@dataclass
class Raw:
    """A whole answer as it goes over the wire: `body` is bytes, an iterator of pieces, or anything that JSON holds."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class JudgeServer:
    """`answer(body)` gives the reply's text, a `{token: log-prob}` table, a status code, or a `Raw` answer; `says` stands in every completion;
    `models` is what GET /models gives, a status code where there is none; `hello` answers the question that only asks who is there."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.answer = answer
        self.says: dict[str, Any] = {}
        self.models: Any = 404
        self.hello: Any = "yes"
        self.met = 0
        self.bodies: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if HELLO in user_text(body):
                    outer.met += 1
                    found = outer.hello
                else:
                    outer.bodies.append(body)
                    found = outer.answer(body)
                if isinstance(found, Raw):
                    return self.raw(found)
                status, content = (found, {}) if isinstance(found, int) else (200, _completion(found) | outer.says)
                self.reply(status, content)

            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self.reply(*((outer.models, {}) if isinstance(outer.models, int) else (200, outer.models)))

            def reply(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def raw(self, answer: Raw) -> None:
                body = answer.body
                if not isinstance(body, bytes | Iterator):
                    body = json.dumps(body).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if isinstance(body, bytes):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    for piece in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(piece)
                except OSError:  # the client has had enough
                    pass

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


Serve = Callable[[Callable[[dict[str, Any]], Any]], JudgeServer]


def _completion(found: Any) -> dict[str, Any]:
    if isinstance(found, dict):
        top = [{"token": token, "logprob": value} for token, value in found.items()]
        first = {"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}
        return {"choices": [{"message": {"content": top[0]["token"]}, "logprobs": {"content": [first]}}]}
    return {"choices": [{"message": {"content": found}}]}


def user_text(body: dict[str, Any]) -> str:
    """Every text that a request shows the judge, the system message left out."""
    parts = [part for message in body["messages"] if message["role"] == "user" for part in _parts(message)]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def pictures(body: dict[str, Any]) -> list[str]:
    """The data of every picture in a request."""
    parts = [part for message in body["messages"] for part in _parts(message)]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
