"""Pairwise judges behind an endpoint: who of two candidates is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from mmrl.reward import Failed
from mmrl.reward.pairwise import PairwiseReward, Verdict
from mmrl.rewards.judge.asking import AskingReward, in_own_words
from mmrl.rewards.judge.chat import Readable
from mmrl.rewards.judge.completion import JudgeError
from mmrl.rewards.judge.identity import prompt_hash
from mmrl.rewards.judge.kept import Reply
from mmrl.rewards.judge.question import GUARD, Media, pair, published
from mmrl.rewards.judge.verdict import answered_winner, flex, json_object, shares, winner
from mmrl.rollout import Sample

SHARE = {1: 1.0, 2: 0.0, 0: 0.5}
SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["1", "2", "tie"]}},
    "required": ["reason", "winner"],
    "additionalProperties": False,
}


class PairJudge(AskingReward, PairwiseReward):
    """Win rate by a vision-language judge that sees two candidates at a time.

    `form`: `schema` asks for JSON with the winner; `think` reads `<answer>Image 1 is better</answer>` (UnifiedReward-Think), `flex` JSON
    with a winner per category (UnifiedReward-Flex), of which `category_weight` says how much the categories count beside the overall winner;
    `shares` the mean share over the three axes of UnifiedReward 2.0. The published prompts of those checkpoints go into `task`, with `{prompt}`
    where the prompt goes; the judge is then asked as they were trained: one message, the pictures and that text.
    """

    task: str = "Decide which candidate fulfils the prompt better, in content and in quality."
    """What is to be decided, in your words; for the other forms the checkpoint's published prompt, with `{prompt}`."""
    form: Literal["schema", "think", "flex", "shares"] = "schema"
    """How the judge answers: JSON with the winner, or as the published checkpoints were trained to."""
    category_weight: float = Field(default=0.5, ge=0, le=1)
    """`flex`: the categories' part in the verdict, beside the overall winner's."""

    @model_validator(mode="after")
    def _has_its_task(self) -> PairJudge:
        if self.form == "schema":
            in_own_words(self.task)
        return self

    @property
    def revision(self) -> str:  # type: ignore[override]
        """Of the code, and the hash of everything that the judge is told beside the sample."""
        return f"3, prompt {prompt_hash(type(self).__name__, GUARD, self.model_dump(mode='json', exclude={'endpoint', 'cache', 'max_pairs', 'orders', 'unreadable'}))}"

    def who(self) -> str | None:
        """The judge as its server names it."""
        said: str | None = None if self._chat is None else self._chat.said()
        return said

    def compare(self, pairs: Sequence[tuple[Sample, Sample]]) -> list[Verdict]:
        """One verdict per pair; an answer that cannot be read is asked for once more."""
        options: dict[str, Any] = {"schema": SCHEMA} if self.form == "schema" else {}
        media = Media(self.endpoint)
        questions = [self._question(first, second, media) for first, second in pairs]
        video = any(sample.video is not None for one in pairs for sample in one)
        names = ("Alignment", "Physics" if video else "Coherence", "Style")
        readable: list[Readable] = [lambda reply: self._read(reply, names) is not None] * len(pairs)
        found = [self._read(reply, names) for reply in self._chat.ask_all(questions, readable, **options)]
        again = [at for at, value in enumerate(found) if value is None]
        anew = [self._chat.forget(questions[at]) for at in again]
        for at, reply in zip(again, self._chat.ask_all(anew, readable[: len(again)], **options), strict=True):
            found[at] = self._read(reply, names)
        return found

    def _question(self, first: Sample, second: Sample, media: Media) -> list[dict[str, Any]]:
        if self.form != "schema" and "{prompt}" in self.task:
            return published([first, second], self.task, media)
        return pair(first, second, self._task, media)

    @property
    def _task(self) -> str:
        if self.form != "schema":
            return self.task
        return f'{self.task} Answer with JSON: {{"reason": "...", "winner": "1", "2" or "tie"}}.'

    def _read(self, reply: Reply | JudgeError, names: Sequence[str]) -> Verdict:
        if isinstance(reply, JudgeError):
            return Failed(str(reply))
        if self.form == "think":
            who = answered_winner(reply.text)
            return None if who is None else SHARE[who]
        if self.form == "flex":
            return self._flex(reply.text)
        if self.form == "shares":
            return shares(reply.text, names)
        named = str((json_object(reply.text) or {}).get("winner", ""))
        who = {"1": 1, "2": 2, "tie": 0}.get(named, winner(named))
        return None if who is None else SHARE[who]

    def _flex(self, text: str) -> Verdict:
        found = flex(text)
        if found is None:
            return None
        overall, categories = found
        if not categories:
            return SHARE[overall]
        own = sum(SHARE[who] for who in categories.values()) / len(categories)
        return (1 - self.category_weight) * SHARE[overall] + self.category_weight * own
