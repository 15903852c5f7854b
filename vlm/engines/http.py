"""JSON over HTTP to one server: bounded retries for what may pass, one clear line for everything else."""

from __future__ import annotations

import ipaddress
import os
import time
from typing import Any
from urllib.parse import urlsplit

from mmrl.errors import UserError

PASSING = (429, 500, 502, 503, 504)
"""Statuses that another try may not see."""
LONGEST_WAIT = 8.0
"""Seconds between two tries, at most."""
SHOWN = 300
"""Characters of a server's own words that are shown."""


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is this machine alone. Raises ValueError for what is no http(s) URL."""
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError where it is no number
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"got {url!r}; expected http://HOST:PORT or https://HOST:PORT")
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


def require_httpx() -> Any:
    """The module. Raises UserError where it is not installed."""
    try:
        import httpx
    except ImportError:
        raise UserError(
            "policy.engine vllm_server needs httpx, which is not installed: pip install 'mmrl[serve]'"
        ) from None
    return httpx


class Client:
    """Asks one server; safe to use from several threads. No proxy and no redirect: what is asked stays where it was sent."""

    def __init__(self, url: str, timeout: float, retries: int, wait: float, token_env: str | None) -> None:
        self.httpx = require_httpx()
        self.url, self.retries, self.wait = url.rstrip("/"), retries, wait
        token = None if token_env is None else os.environ.get(token_env, "").strip()
        if token_env is not None and not token:
            raise UserError(f"policy.engine.token_env: the environment variable {token_env} is not set")
        if token and not (token.isascii() and token.isprintable()):  # a library's error would print it
            raise UserError(f"policy.engine.token_env: {token_env} holds characters that no token has")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = self.httpx.Timeout(timeout, connect=min(timeout, 10.0))
        self.client = self.httpx.Client(headers=headers, timeout=limits, trust_env=False)

    def get(self, path: str, optional: bool = False) -> Any:
        """With `optional`, None from a server that has no such path."""
        return self.ask("GET", path, None, optional)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.ask("POST", path, {} if body is None else body)

    def ask(self, method: str, path: str, body: dict[str, Any] | None, optional: bool = False) -> Any:
        """The JSON that the server answers, None for an answer without a body. Raises UserError when it has none to give."""
        for attempt in range(self.retries + 1):
            try:
                answer = self.client.request(method, f"{self.url}{path}", json=body)
            except self.httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if answer.is_success:
                    return self._json(answer, path)
                if optional and answer.status_code == 404:
                    return None
                reason = f"it answers {answer.status_code}: {_words(answer)}"
                if answer.status_code not in PASSING:
                    raise UserError(f"{self.url}{path}: {reason}{_hint(path, answer.status_code)}")
            if attempt < self.retries:
                time.sleep(min(self.wait * 2**attempt, LONGEST_WAIT))
        raise UserError(f"{self.url}{path} does not work, {self.retries + 1} tries in a row; at last: {reason}")

    def _json(self, answer: Any, path: str) -> Any:
        if not answer.content.strip():
            return None
        try:
            return answer.json()
        except ValueError:
            if path.startswith("/v1/") and path.endswith("_adapter"):
                return answer.text
            raise UserError(f"{self.url}{path}: expected JSON, got {_words(answer)}") from None


def _words(answer: Any) -> str:
    text = " ".join(answer.text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _hint(path: str, status: int) -> str:
    if status in (401, 403):
        return "; name the variable that holds the server's key in policy.engine.token_env"
    if status != 404:
        return ""
    if path.endswith("_lora_adapter"):
        return "; start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    return "" if path.startswith("/v1/") else "; start the server with VLLM_SERVER_DEV_MODE=1"
