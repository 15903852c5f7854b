"""Rewards from what a judge says about one sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from mmrl.reward import Failed
from mmrl.rewards.judge.asking import AskingReward, in_own_words
from mmrl.rewards.judge.chat import Readable
from mmrl.rewards.judge.completion import JudgeError
from mmrl.rewards.judge.identity import prompt_hash
from mmrl.rewards.judge.kept import Reply
from mmrl.rewards.judge.question import GUARD, Media, messages, published
from mmrl.rewards.judge.verdict import axes, edit_scores, field, final_score, json_object, number, yes_share
from mmrl.rollout import Prompt, Sample

Verdict = float | None


def _schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


HOLDS = _schema({"holds": {"type": "array", "items": {"type": "boolean"}}})


class JudgeReward(AskingReward):
    """Base: asks once, once more where the answer cannot be read, and then the sample has failed."""

    reference: bool = True
    """Show the judge the prompt's target, if there is one."""

    @property
    def revision(self) -> str:  # type: ignore[override]
        """Of the code, and the hash of everything that the judge is told beside the sample."""
        return (
            f"2, prompt {prompt_hash(type(self).__name__, GUARD, self.model_dump(mode='json', exclude={'endpoint'}))}"
        )

    @abstractmethod
    def instruction(self, sample: Sample) -> str:
        """What the judge is told to do."""

    @abstractmethod
    def verdict(self, reply: Reply, sample: Sample) -> Verdict:
        """The score that a reply means; None where it cannot be read."""

    def asked(self) -> dict[str, Any]:
        """The form of the answer: `schema`, or `top_logprobs`."""
        return {}

    def statements(self, sample: Sample) -> Sequence[str]:
        """What the judge is to decide about, numbered from 1."""
        return ()

    def shown(self, sample: Sample) -> list[dict[str, Any]]:
        """The pictures and videos."""
        return Media(self.endpoint).of(sample)

    def question(self, sample: Sample) -> list[dict[str, Any]]:
        """The messages about a sample."""
        return messages(self.shown(sample), sample, self.instruction(sample), self.reference, self.statements(sample))

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """A number or `Failed` per sample."""
        questions = [self.question(sample) for sample in samples]
        readable = [self._reader(sample) for sample in samples]
        replies = self._chat.ask_all(questions, readable, **self.asked())
        found = [self._read(reply, sample) for reply, sample in zip(replies, samples, strict=True)]
        again = [row for row, value in enumerate(found) if value is None and not isinstance(replies[row], JudgeError)]
        anew = [self._chat.forget(questions[row]) for row in again]
        second = self._chat.ask_all(anew, [readable[row] for row in again], **self.asked())
        for row, reply in zip(again, second, strict=True):
            found[row], replies[row] = self._read(reply, samples[row]), reply
        return [value if value is not None else _failed(reply) for value, reply in zip(found, replies, strict=True)]

    def _reader(self, sample: Sample) -> Readable:
        return lambda reply: self.verdict(reply, sample) is not None

    def _read(self, reply: Reply | JudgeError, sample: Sample) -> Verdict:
        return None if isinstance(reply, JudgeError) else self.verdict(reply, sample)


def _failed(reply: Reply | JudgeError) -> Failed:
    if isinstance(reply, JudgeError):
        return Failed(str(reply))
    return Failed(f"the judge's answer cannot be read, twice: {reply.text[:120]!r}")


class Judge(JudgeReward):
    """A judge's verdict on each sample: by `form`, a number from `low` to `high` in a JSON schema (scaled to 0..1), or the probability of
    yes from the log-probs of its first token.

    `task` says what is to be judged; an answer's own words are escaped, so that it cannot write its verdict.
    """

    range = (0.0, 1.0)
    task: str = "Judge how well the result fulfils the prompt."
    """What is to be judged, in your words."""
    form: Literal["score", "yes_no"] = "score"
    """`score`: a number from `low` to `high`; `yes_no`: the probability that the first token says yes."""
    low: FiniteFloat = 1.0
    """The lowest number that the judge may give; it is worth 0."""
    high: FiniteFloat = 5.0
    """The highest; it is worth 1."""
    top_logprobs: int = Field(default=20, ge=2, le=20)
    """`yes_no`: likeliest first tokens that are looked at."""

    @model_validator(mode="after")
    def _in_order(self) -> Judge:
        in_own_words(self.task)
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self

    def instruction(self, sample: Sample) -> str:
        if self.form == "yes_no":
            return f"{self.task} Answer with one word: yes or no."
        return (
            f'{self.task} Answer with JSON: {{"reason": "...", "score": a number from {self.low:g} to {self.high:g}}}.'
        )

    def asked(self) -> dict[str, Any]:
        if self.form == "yes_no":
            return {"top_logprobs": self.top_logprobs}
        properties = {
            "reason": {"type": "string"},
            "score": {"type": "number", "minimum": self.low, "maximum": self.high},
        }
        return {"schema": _schema(properties)}

    def verdict(self, reply: Reply, sample: Sample) -> Verdict:
        if self.form == "yes_no":
            return yes_share(reply.first)
        value = field(reply.text, "score", self.low, self.high)
        return None if value is None else (value - self.low) / (self.high - self.low)


class Item(BaseModel):
    """A point of a rubric: a statement that holds or not, what it weighs (negative: it should not hold), and whether the score is 0
    when it fails."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    text: str
    """A statement about the result that holds or not."""
    weight: FiniteFloat = 1.0
    """What it weighs; negative: it should not hold."""
    hard: bool = False
    """The score is 0 where it fails."""


class Rubric(JudgeReward):
    """The weighted share of a rubric's items that hold: `max(0, sum(w pass)) / sum(|w|)`; a hard item that fails gives 0.

    So with items of negative weight the best result has less than 1. The items stand in the config, or in the prompt's `meta.rubric`.
    """

    range = (0.0, 1.0)
    items: tuple[Item, ...] = ()
    """For prompts without a rubric of their own."""

    def of(self, prompt: Prompt) -> tuple[Item, ...]:
        """The items of a prompt. Raises ValueError where there are none that count."""
        own = prompt.meta.get("rubric")
        if own is not None and not isinstance(own, list | tuple):
            raise ValueError(f"prompt '{prompt.id}': meta.rubric is {own!r}; expected a list of {{text, weight, hard}}")
        try:
            items = self.items if own is None else tuple(Item.model_validate(one) for one in own)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"prompt '{prompt.id}': meta.rubric: {first['loc']}: {first['msg']}") from error
        if not any(item.weight > 0 for item in items):
            raise ValueError(f"prompt '{prompt.id}' has no rubric item of a positive weight")
        return items

    def check_prompt(self, prompt: Prompt) -> None:
        self.of(prompt)

    def statements(self, sample: Sample) -> list[str]:
        return [item.text for item in self.of(sample.prompt)]

    def instruction(self, sample: Sample) -> str:
        return (
            "Decide for each of the numbered statements whether it holds for the result. Answer with JSON: "
            '{"holds": [true or false, one per statement]}.'
        )

    def asked(self) -> dict[str, Any]:
        return {"schema": HOLDS}

    def verdict(self, reply: Reply, sample: Sample) -> Verdict:
        items = self.of(sample.prompt)
        holds = decided(reply.text, len(items))
        if holds is None:
            return None
        if any(item.hard and held != (item.weight > 0) for item, held in zip(items, holds, strict=True)):
            return 0.0
        earned = sum(item.weight for item, held in zip(items, holds, strict=True) if held)
        return max(0.0, earned) / sum(abs(item.weight) for item in items)


class Perception(JudgeReward):
    """Perception-R1: the share of a prompt's annotated visual facts (`meta.facts`, a list of texts) that agree with the response.

    The judge sees the facts and the response and no pictures. Source: Perception-R1 (visual annotations judged against the response).
    """

    range = (0.0, 1.0)
    needs = ("text",)
    reference: bool = False

    def facts(self, prompt: Prompt) -> list[str]:
        """Raises ValueError for a prompt without facts."""
        found = prompt.meta.get("facts")
        if not isinstance(found, list | tuple) or not found:
            raise ValueError(f"prompt '{prompt.id}' has no visual facts (meta.facts, a list of texts)")
        for fact in found:
            if not isinstance(fact, str) or not fact.strip():
                raise ValueError(f"prompt '{prompt.id}': meta.facts holds {fact!r}; expected texts")
        return list(found)

    def check_prompt(self, prompt: Prompt) -> None:
        self.facts(prompt)

    def shown(self, sample: Sample) -> list[dict[str, Any]]:
        return []

    def statements(self, sample: Sample) -> list[str]:
        return self.facts(sample.prompt)

    def instruction(self, sample: Sample) -> str:
        return (
            "Each of the numbered statements is true of the picture that the prompt is about. Decide for each whether the response is "
            'consistent with it and states or uses it. Answer with JSON: {"holds": [true or false, one per statement]}.'
        )

    def asked(self) -> dict[str, Any]:
        return {"schema": HOLDS}

    def verdict(self, reply: Reply, sample: Sample) -> Verdict:
        holds = decided(reply.text, len(self.facts(sample.prompt)))
        return None if holds is None else sum(holds) / len(holds)


class UnifiedReward(JudgeReward):
    """UnifiedReward as a pointwise judge behind an endpoint: `v1.5` (`Final Score`), `v2.0` (three axes) or `edit` (two scores), 0 to 1.

    The published prompts belong to the checkpoint: give yours in `task`, with `{prompt}` where the prompt goes; the judge is then asked as
    the checkpoint was trained: one message, the pictures and that text. An answer out of range or without all parts is unreadable.
    Source: CodeGoat24/UnifiedReward.
    """

    range = (0.0, 1.0)
    licence = "MIT (code); weights: see the model card"
    version: Literal["v1.5", "v2.0", "edit"] = "v2.0"
    """Of the checkpoint; it says what form the answer has."""
    task: str
    """The checkpoint's published prompt."""
    reference: bool = False
    """Show the judge the prompt's target as a reference."""

    def question(self, sample: Sample) -> list[dict[str, Any]]:
        if "{prompt}" in self.task:
            return published([sample], self.task, Media(self.endpoint))
        return super().question(sample)

    def axes(self, sample: Sample) -> tuple[str, str, str]:
        """Names of the three axes: a video has Physics in the place of Coherence."""
        return ("Alignment", "Physics" if sample.video is not None else "Coherence", "Style")

    def instruction(self, sample: Sample) -> str:
        return self.task

    def verdict(self, reply: Reply, sample: Sample) -> Verdict:
        if self.version == "v1.5":
            value = final_score(reply.text)
            return None if value is None else (value - 1) / 4
        if self.version == "edit":
            pair = edit_scores(reply.text)
            return None if pair is None else number(min(pair) / 25, 0, 1)
        found = axes(reply.text, self.axes(sample))
        return None if found is None else (sum(found.values()) / len(found) - 1) / 4


def decided(text: str, count: int) -> list[bool] | None:
    """The `holds` of the JSON object in a text, `count` times true or false; None for anything else."""
    holds = (json_object(text) or {}).get("holds")
    if not isinstance(holds, list) or len(holds) != count or not all(isinstance(one, bool) for one in holds):
        return None
    return holds
