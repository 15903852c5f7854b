"""A chat completion, read strictly: what is cut off, refused or not one whole answer is an error and never a text to read a verdict from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmrl.rewards.judge.identity import who_of
from mmrl.rewards.judge.kept import Reply

CUT = {
    "length": "an answer that was cut off; raise endpoint.max_tokens",
    "content_filter": "an answer that a filter withheld",
}
ROUNDING = 1e-3
"""A log-prob may be above 0 by no more than this."""


class JudgeError(Exception):
    """A question without an answer."""


def read(body: bytes, first_token: bool) -> Reply:
    """What the one choice of a completion says; with `first_token` the log-probs of its likeliest first tokens too, and it may then be cut off
    after that token. Raises JudgeError for what is no whole answer."""
    try:
        completion = json.loads(body)
        (choice,) = completion["choices"]
        message = choice["message"]
        text, refusal, end = _words(message.get("content")), message.get("refusal"), choice.get("finish_reason")
        first = _first(choice.get("logprobs") or {}) if first_token else {}
        who = who_of(completion)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise JudgeError(f"an answer that is no chat completion of one choice: {shown(body)}") from error
    if refusal:
        raise JudgeError(f"the judge refused: {str(refusal)[:200]}")
    if end in CUT and not (first_token and end == "length"):
        raise JudgeError(CUT[end])
    if first_token and not first:
        raise JudgeError(
            "an answer without log-probs, which form yes_no needs; serve the judge with log-probs, or use form score"
        )
    return Reply(text, first, who)


def shown(body: bytes) -> str:
    """The beginning of a body, for a message."""
    return body[:200].decode("utf-8", "replace")


def _words(content: Any) -> str:
    """The text of a message; of one in parts, its text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")


def _first(logprobs: Mapping[str, Any]) -> dict[str, float]:
    """Log-prob by token of the first place; a token that is listed twice counts once."""
    found: dict[str, float] = {}
    for one in [token["top_logprobs"] for token in logprobs.get("content") or ()][:1]:
        for entry in one:
            value = float(entry["logprob"])
            if not value <= ROUNDING:
                raise ValueError(f"a log-prob of {value}")
            token = str(entry["token"])
            found[token] = max(min(value, 0.0), found.get(token, -float("inf")))
    return found
