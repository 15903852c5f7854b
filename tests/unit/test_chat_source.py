"""Demonstrations and preference pairs from chats: the usual ways to write them give the same prompts, mistakes are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mmrl.data.chat import ChatExamples
from mmrl.data.preference import PreferenceExamples
from mmrl.data.rows import RowExamples
from mmrl.errors import UserError
from mmrl.rollout import Sample

Write = Callable[..., Path]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
ASK = {"role": "user", "content": "<image> What is it?"}
SAY = {"role": "assistant", "content": "A cat."}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A JSON-lines file beside the pictures a.png and b.png."""
    for name in ("a.png", "b.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    (tmp_path / "c.mp4").write_bytes(b"a video")

    def _write(*rows: Any) -> Path:
        path = tmp_path / "chat.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return path

    return _write


def every(source: RowExamples) -> list[Sample]:
    """Every example once, in the order of the rows."""
    stream = source.open(0)
    found = [stream.example(index) for index in range(len(stream.samples))]
    return sorted(found, key=lambda sample: sample.prompt.id)


def only(source: RowExamples) -> Sample:
    (sample,) = every(source)
    return sample


def fails(kind: type[RowExamples], path: Path, message: str, **options: Any) -> None:
    """Opening raises a UserError of one line that contains `message`, with file and line before it."""
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        kind(path=path, **options).open(0)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}:")


# ---- the ways to write a chat


SAME = [
    {"messages": [ASK, SAY], "images": ["a.png"]},
    {"messages": [ASK, SAY], "image": "a.png"},
    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": " What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}]},
    ]},
    {"messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it?"}]}, SAY,
    ], "images": ["a.png"]},
    {"messages": [
        {"role": "user", "content": [{"type": "image", "path": "a.png", "text": None}, {"type": "text", "text": " What is it?"}]},
        SAY,
    ]},
    {"image": "a.png", "conversations": [
        {"from": "human", "value": "<image> What is it?"}, {"from": "gpt", "value": "A cat."},
    ]},
]  # fmt: skip


@pytest.mark.parametrize("row", SAME)
def test_all_ways_give_the_same_demonstration(write: Write, row: dict[str, Any], tmp_path: Path) -> None:
    sample = only(ChatExamples(path=write(row)))
    assert sample.text == "A cat." and sample.prompt.text == "<image> What is it?"
    assert sample.prompt.media == (str(tmp_path / "a.png"),)
    assert sample.prompt.id == "chat.jsonl:1" and sample.prompt.meta["source"] == f"{tmp_path / 'chat.jsonl'}:1"


def test_media_stand_in_the_order_of_the_text(write: Write, tmp_path: Path) -> None:
    row = {
        "id": 7, "target": "b", "meta": {"difficulty": 2}, "images": ["a.png", "b.png"], "videos": ["c.mp4"],
        "messages": [{"role": "user", "content": "<image> and <video> or <image>?"}, SAY],
    }  # fmt: skip
    prompt = only(ChatExamples(path=write(row))).prompt
    assert prompt.media == tuple(str(tmp_path / name) for name in ("a.png", "c.mp4", "b.png"))
    assert (prompt.id, prompt.target, prompt.meta["difficulty"]) == ("7", "b", 2)
    row["messages"][0]["content"] = "Which?"
    prompt = only(ChatExamples(path=write(row))).prompt
    assert prompt.text == "Which?" and prompt.media == tuple(
        str(tmp_path / name) for name in ("a.png", "b.png", "c.mp4")
    )


def test_own_and_listed_media_may_be_mixed(write: Write, tmp_path: Path) -> None:
    content = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "or"}, {"type": "image"}]
    prompt = only(
        ChatExamples(path=write({"messages": [{"role": "user", "content": content}, SAY], "images": ["a.png"]}))
    ).prompt
    assert prompt.text == "<image>or<image>" and prompt.media == (str(tmp_path / "b.png"), str(tmp_path / "a.png"))


def test_text_alone_is_a_chat_too(write: Write) -> None:
    sample = only(ChatExamples(path=write({"messages": [{"role": "user", "content": "Hi, <i>you</i>"}, SAY]})))
    assert sample.prompt.text == "Hi, <i>you</i>" and sample.prompt.media == ()


def test_rows_of_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"messages": [[ASK, SAY], [ASK, SAY]], "images": [[Image.fromarray(PIXELS)]] * 2, "id": ["x", "y"]}
    features = datasets.Features({
        "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        "images": datasets.List(datasets.Image()), "id": datasets.Value("string"),
    })  # fmt: skip
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    samples = every(ChatExamples(dataset=str(tmp_path / "saved")))
    assert [sample.prompt.id for sample in samples] == ["x", "y"]
    assert all(np.array_equal(sample.prompt.media[0], PIXELS) and sample.text == "A cat." for sample in samples)


# ---- several exchanges, system messages


LONG = [ASK, SAY, {"role": "user", "content": "Its colour?"}, {"role": "assistant", "content": "Black."}]


def test_several_exchanges_are_refused_cut_or_folded(write: Write, tmp_path: Path) -> None:
    path = write({"messages": LONG, "images": ["a.png"]})
    fails(
        ChatExamples,
        path,
        "chat.jsonl:1: 2 exchanges; expected one. Set turns: first to keep the first, or turns: last",
    )
    first, last = (only(ChatExamples(path=path, turns=turns)) for turns in ("first", "last"))
    assert (first.prompt.text, first.text) == ("<image> What is it?", "A cat.")
    assert (
        last.prompt.text == "User: <image> What is it?\nAssistant: A cat.\nUser: Its colour?" and last.text == "Black."
    )
    assert first.prompt.media == last.prompt.media == (str(tmp_path / "a.png"),)
    more = [*LONG[:2], {"role": "user", "content": "And <image>?"}, LONG[3]]
    path = write({"messages": more, "images": ["a.png", "b.png"]})
    fails(ChatExamples, path, "an exchange after the first has images, which turns: first would lose", turns="first")
    assert len(only(ChatExamples(path=path, turns="last")).prompt.media) == 2


def test_a_single_exchange_is_the_same_under_every_option(write: Write) -> None:
    path = write(SAME[0])
    assert len({only(ChatExamples(path=path, turns=turns)).prompt.text for turns in ("single", "first", "last")}) == 1


def test_a_system_message_is_refused_or_dropped(write: Write) -> None:
    path = write({"messages": [{"role": "system", "content": "Be brief."}, ASK, SAY], "images": ["a.png"]})
    fails(
        ChatExamples, path, "starts with a system message; give it to the policy as its own option and set system: drop"
    )
    assert only(ChatExamples(path=path, system="drop")).prompt.text == "<image> What is it?"


# ---- mistakes


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "hi"}, "no 'messages' (there: text)"),
        ({"messages": []}, "the messages are []; expected a list"),
        ({"messages": "hi"}, "the messages are 'hi'; expected a list"),
        ({"messages": ["hi"]}, "message 1 is 'hi'; expected {role, content}"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 has the role 'tool'; expected system, user or assistant"),
        ({"messages": [{"content": "x"}]}, "message 1 has the role None"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1 says 3; expected a text or a list of parts"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "the last message is the user's; expected the assistant's answer"),
        ({"messages": [SAY]}, "turn 1 is the assistant's; expected the user's"),
        ({"messages": [SAY, SAY]}, "turn 1 is the assistant's; expected the user's"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "turn 2 is the user's; expected the assistant's"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]}, "message 2 is empty"),
        ({"messages": [{"role": "user", "content": "<image>"}, SAY], "images": ["a.png"]}, "message 1 is empty"),
        ({"messages": [ASK, SAY]}, "message 1: the messages have more <image> than there are images beside them"),
        ({"messages": [ASK, SAY], "images": ["a.png", "b.png"]}, "1 images more than the messages have <image>; write one for"),
        ({"messages": [ASK, SAY], "images": ["a.png"], "videos": ["c.mp4"]}, "1 videos more than the messages have <video>"),
        ({"messages": [ASK, SAY], "images": ["z.png"]}, "/z.png, which is no file"),
        ({"messages": [ASK, SAY], "images": [3]}, "'images' holds no image"),
        ({"messages": [ASK, {"role": "assistant", "content": "<image>!"}], "images": ["a.png"]}, "message 2 has <image>, and only"),
        ({"messages": [{"role": "system", "content": "<image>"}, ASK, SAY], "images": ["a.png"]}, "message 1 has <image>, and only"),
        ({"messages": [ASK, {"role": "assistant", "content": "<think>x</think><answer>y"}], "images": ["a.png"]},
         "the answer opens <answer> and never closes it; write </answer>, or remove the row"),
        ({"messages": [ASK, {"role": "assistant", "content": "<think>x<answer>y</answer>"}], "images": ["a.png"]},
         "the answer opens <think> and never closes it"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "message 1 has the part {'type': 'sound'}; expected"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}]}, "a part of type text holds <image>"),
        ({"messages": [ASK, {"role": "assistant", "content": [{"type": "image"}]}], "images": ["a.png"]}, "message 2 has a part of type"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_file_and_line(write: Write, row: dict[str, Any], message: str) -> None:
    fails(ChatExamples, write(SAME[0], row), message)
    with pytest.raises(UserError, match=r"chat\.jsonl:2: "):
        ChatExamples(path=write(SAME[0], row)).open(0)


def test_files_and_options(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no examples"):
        ChatExamples(path=write()).open(0)
    with pytest.raises(UserError, match=r"chat\.jsonl:2: not JSON"):
        ChatExamples(path=write(SAME[0], "{")).open(0)
    with pytest.raises(UserError, match="id 'x' was already used at"):
        ChatExamples(path=write({**SAME[0], "id": "x"}, {**SAME[0], "id": "x"})).open(0)
    for options in ({}, {"path": tmp_path / "chat.jsonl", "dataset": "some/name"}):
        with pytest.raises(ValidationError, match="expected either path"):
            ChatExamples(**options)
    with pytest.raises(ValidationError):
        ChatExamples(path=tmp_path / "chat.jsonl", turns="all")


def test_parts_share_no_row_and_a_stream_is_a_function_of_the_index(write: Write) -> None:
    rows = [{"messages": [{"role": "user", "content": f"number {k}"}, SAY]} for k in range(20)]
    path = write(*rows)
    parts = {
        part: {sample.prompt.text for sample in every(ChatExamples(path=path, split=part))}
        for part in ("train", "held_out")
    }
    assert len(parts["train"]) == 16 and len(parts["held_out"]) == 4 and not parts["train"] & parts["held_out"]
    one, two = ChatExamples(path=path).open(3), ChatExamples(path=path).open(3)
    assert [one.example(k).prompt.id for k in (25, 0, 7)] == [two.example(k).prompt.id for k in (25, 0, 7)]
    one.example(0).meta["rejected"] = "written into"
    assert one.example(0).meta == {}


def test_an_answer_may_close_what_the_chat_template_opened(write: Write) -> None:
    said = {"role": "assistant", "content": "x</think><answer>y</answer>"}
    assert (
        only(ChatExamples(path=write({"messages": [{"role": "user", "content": "q"}, said]}))).text == said["content"]
    )
    pair = {"prompt": "q", "chosen": "<answer>y</answer>", "rejected": "<answer>y"}
    assert only(PreferenceExamples(path=write(pair))).meta["rejected"] == "<answer>y"


# ---- preferences


PAIRS = [
    {"prompt": "<image> What is it?", "chosen": "A cat.", "rejected": "A dog.", "images": ["a.png"]},
    {"prompt": [ASK], "chosen": [SAY], "rejected": [{"role": "assistant", "content": "A dog."}], "images": ["a.png"]},
    {"chosen": [ASK, SAY], "rejected": [ASK, {"role": "assistant", "content": "A dog."}], "images": ["a.png"]},
]


@pytest.mark.parametrize("row", PAIRS)
def test_preferences_hold_both_answers(write: Write, row: dict[str, Any], tmp_path: Path) -> None:
    sample = only(PreferenceExamples(path=write(row)))
    assert sample.text == "A cat." and sample.meta == {"rejected": "A dog."}
    assert sample.prompt.text == "<image> What is it?" and sample.prompt.media == (str(tmp_path / "a.png"),)


def test_preferences_under_other_names_and_after_a_longer_chat(write: Write) -> None:
    path = write({"question": "2 + 2?", "good": "4", "bad": "5"})
    sample = only(PreferenceExamples(path=path, prompt="question", chosen="good", rejected="bad"))
    assert (sample.prompt.text, sample.text, sample.meta["rejected"]) == ("2 + 2?", "4", "5")
    path = write({"prompt": LONG[:3], "chosen": "Black.", "rejected": "White.", "images": ["a.png"]})
    text = only(PreferenceExamples(path=path)).prompt.text
    assert text == "User: <image> What is it?\nAssistant: A cat.\nUser: Its colour?"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a?", "chosen": "b"}, "no 'rejected' (there: prompt, chosen)"),
        ({"chosen": "b", "rejected": "c"}, "no 'prompt' (there: chosen, rejected)"),
        ({"prompt": "a?", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same text"),
        ({"prompt": "a?", "chosen": "b", "rejected": "b\n"}, "'chosen' and 'rejected' are the same text"),
        ({"prompt": "a?", "chosen": "<answer>b", "rejected": "c"}, "'chosen' opens <answer> and never closes it"),
        ({"prompt": "a?", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "a?", "chosen": 3, "rejected": "b"}, "'chosen': the messages are 3; expected a list"),
        ({"prompt": "a?", "chosen": [SAY, SAY], "rejected": "b"}, "'chosen' has 2 messages; expected one, the assistant's"),
        ({"prompt": "a?", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "'chosen' has 1 messages; expected one"),
        ({"prompt": [ASK, SAY], "chosen": "b", "rejected": "c", "images": ["a.png"]}, "the prompt ends with the assistant's"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "'prompt' is empty"),
        ({"prompt": "<image> a?", "chosen": "b", "rejected": "c"}, "'prompt': the messages have more <image> than"),
        (
            {"chosen": [{"role": "user", "content": "a?"}, SAY], "rejected": [{"role": "user", "content": "b?"}, SAY]},
            "'chosen' and 'rejected' answer different chats; expected one prompt",
        ),
        (
            {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "a?"}], "chosen": "b", "rejected": "c"},
            "starts with a system message",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_preferences_are_named(write: Write, row: dict[str, Any], message: str) -> None:
    fails(PreferenceExamples, write(PAIRS[0], row), message)
