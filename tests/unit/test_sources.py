"""Prompt and example sources, built by name as a config does, and what a new user's files look like at first."""

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

from mmrl.components import build, resolve, table
from mmrl.data.records import Columns, prompt_of
from mmrl.errors import UserError
from mmrl.image import read_image
from mmrl.rollout import Prompt

Write = Callable[..., Path]
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(name: str, *lines: Any) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8"
        )
        return path

    return _write


def load(name: str, **options: Any) -> list[Prompt]:
    return build(
        "prompts", {"name": name, **{k: str(v) if isinstance(v, Path) else v for k, v in options.items()}}
    ).load()


def fails(message: str, name: str, **options: Any) -> None:
    """Loading raises a UserError of one line that contains `message`."""
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


def test_every_name_in_the_tables_resolves() -> None:
    for kind, method in (("prompts", "load"), ("examples", "open")):
        for name in table(kind):
            assert callable(getattr(resolve(kind, name), method))


# txt


def test_txt_lines_become_prompts_with_line_numbers_as_ids(write: Write) -> None:
    path = write("p.txt", "a red circle", "  naïve café \r", "a red circle")
    prompts = load("txt", path=path)
    assert [p.text for p in prompts] == ["a red circle", "naïve café", "a red circle"]
    assert [p.id for p in prompts] == ["p.txt:1", "p.txt:2", "p.txt:3"]


def test_txt_byte_order_mark_and_missing_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert [p.text for p in load("txt", path=tmp_path / "p.txt")] == ["one", "two"]


def test_txt_line_separators_inside_a_prompt_do_not_split_it(write: Write) -> None:
    assert len(load("txt", path=write("p.txt", "a\u2028b", "c\x0bd"))) == 2


def test_txt_empty_line_is_an_error_unless_told(write: Write) -> None:
    path = write("p.txt", "one", "  ", "three")
    fails(f"{path}:2: empty line; remove it or set skip_empty: true", "txt", path=path)
    assert [p.id for p in load("txt", path=path, skip_empty=True)] == ["p.txt:1", "p.txt:3"]


def test_txt_files_that_are_not_there_or_no_text(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails(f"no file {tmp_path}/absent.txt", "txt", path="absent.txt")
    fails(f"{tmp_path} is a folder; expected a file", "txt", path=".")
    fails("holds no prompts", "txt", path=write("empty.txt"))
    Image.fromarray(PICTURE).save(tmp_path / "p.png")
    fails("p.png:1: not UTF-8 text", "txt", path="p.png")


def test_a_relative_path_is_looked_up_beside_the_config_first(write: Write, tmp_path: Path) -> None:
    write("p.txt", "beside")
    source = resolve("prompts", "txt").model_validate({"path": "p.txt"}, context={"base": tmp_path})
    assert source.load()[0].text == "beside"


# jsonl


def test_jsonl_fields(write: Write, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    row = {"id": 7, "text": "how many?", "target": {"n": 3}, "media": ["a.png"], "meta": {"difficulty": 2}}
    first, second = load("jsonl", path=write("p.jsonl", row, {"text": "plain", "extra": 1}))
    assert (first.id, first.text, first.target, first.media) == ("7", "how many?", {"n": 3}, (str(tmp_path / "a.png"),))
    assert first.meta["difficulty"] == 2
    assert (second.id, second.target, second.media) == ("p.jsonl:2", None, ())


def test_jsonl_other_keys(write: Write) -> None:
    columns = {"text": "question", "id": "qid", "target": "answer", "meta": ["level"]}
    (prompt,) = load(
        "jsonl", path=write("p.jsonl", {"question": "q", "qid": "x", "answer": 4, "level": 1}), columns=columns
    )
    assert (prompt.id, prompt.text, prompt.target, prompt.meta["level"]) == ("x", "q", 4, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', ":2: not JSON: Expecting ',' delimiter at column 13; expected one object per line"),
        ("a red circle", ":2: not JSON"),
        ("[1]", ":2: got a JSON list; expected an object"),
        ("", ":2: empty line; remove it or set skip_empty: true"),
        ({"txet": "a"}, ":2: no 'text'; did you mean 'txet'? (there: txet; set columns.text)"),
        ({"text": 3}, ":2: 'text' is 3 (int); expected a string"),
        ({"text": None}, ":2: 'text' is null (NoneType); expected a string"),
        ({"text": "  "}, ":2: 'text' is empty"),
        ({"text": "a", "id": [1]}, ":2: 'id' is [1] (list); expected a string or an integer"),
        ({"text": "a", "id": "first"}, ":2: id 'first' was already used at "),
        ({"text": "a", "meta": 3}, ":2: 'meta' is 3 (int); expected an object"),
        ({"text": "a", "media": "gone.png"}, "gone.png, which is no file"),
        ({"text": "a", "media": 3}, ":2: 'media' holds no image"),
    ],
)
def test_jsonl_bad_lines_are_named(write: Write, line: Any, message: str) -> None:
    path = write("p.jsonl", {"text": "ok", "id": "first"}, line)
    fails(message, "jsonl", path=path)


def test_jsonl_a_key_that_is_named_must_be_there(write: Write) -> None:
    path = write("p.jsonl", {"text": "a", "answer": 3})
    fails("no 'anser'; did you mean 'answer'?", "jsonl", path=path, columns={"target": "anser"})
    fails("no 'levl'", "jsonl", path=path, columns={"meta": ["answer", "levl"]})


def test_jsonl_without_lines(write: Write) -> None:
    fails("holds no prompts", "jsonl", path=write("p.jsonl"))


# list


def test_list_items_are_texts_or_mappings() -> None:
    first, second = load("list", items=["a cat", {"text": "a dog", "id": "d", "target": 1}])
    assert (first.id, first.text, second.id, second.target) == ("list:1", "a cat", "d", 1)
    fails("list:2: 'text' is empty", "list", items=["a", ""])
    fails(
        "list:2: id 'd' was already used at list:1", "list", items=[{"text": "a", "id": "d"}, {"text": "b", "id": "d"}]
    )
    with pytest.raises(ValidationError, match="at least 1 item"):
        load("list", items=[])


# hf


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "arrow", "disk", "dict"])
def test_hf_reads_local_data(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, 2]})
    path = tmp_path / f"data.{kind}"
    if kind in ("csv", "json", "parquet"):
        getattr(data, f"to_{kind}")(path)
    elif kind == "arrow":
        data.save_to_disk(tmp_path / "d")
        path = next((tmp_path / "d").glob("*.arrow"))
    else:
        (data if kind == "disk" else datasets.DatasetDict(train=data)).save_to_disk(path)
    prompts = load("hf", dataset=path, columns={"text": "prompt", "target": "answer"})
    assert [(p.id, p.text, p.target) for p in prompts] == [(f"{path.name}:0", "a", 1), (f"{path.name}:1", "b", 2)]


def test_hf_data_is_looked_up_beside_the_config_first(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    path = write("rows.jsonl", {"text": "beside", "media": "a.png"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (prompt,) = build("prompts", {"name": "hf", "dataset": "rows.jsonl"}, tmp_path).load()
    assert (prompt.text, prompt.media, prompt.meta["source"]) == ("beside", (str(tmp_path / "a.png"),), f"{path}[0]")
    chats = [{"role": "user", "content": "<image> q"}, {"role": "assistant", "content": "a"}]
    write("chats.jsonl", {"messages": chats, "images": ["a.png"]})
    stream = build("examples", {"name": "chat", "dataset": "chats.jsonl"}, tmp_path).open(0)
    assert stream.example(0).prompt.media == (str(tmp_path / "a.png"),)
    (elsewhere / "rows.jsonl").write_text('{"text": "here"}\n')
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert build("prompts", {"name": "hf", "dataset": "rows.jsonl"}, elsewhere).load()[0].text == "here"
    source = build("prompts", {"name": "hf", "dataset": "owner/on-the-hub"}, tmp_path)
    assert source.dataset == "owner/on-the-hub" and source.folder() is None


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        (
            "<image> ?",
            [],
            "'text' has 1 <image> and 0 <video>, but 'media' holds 0 images and 0 videos; write one for each",
        ),
        ("<image> <image> ?", ["a.png"], "'text' has 2 <image> and 0 <video>, but 'media' holds 1 images"),
        ("<image> ?", ["v.mp4"], "'text' has 1 <image> and 0 <video>, but 'media' holds 0 images and 1 videos"),
    ],
)
def test_placeholders_and_media_must_agree(
    write: Write, tmp_path: Path, text: str, media: list[str], message: str
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    (tmp_path / "v.mp4").write_bytes(b"")
    rows = [("<image> ?", ["a.png"]), ("none", ["v.mp4", "a.png"]), ("<image>, the other in a template", ["a.png"] * 2)]
    path = write("p.jsonl", *({"text": text, "media": names} for text, names in rows))
    assert len(load("jsonl", path=path)) == 3
    fails(f"{path}:2: {message}", "jsonl", path=write("p.jsonl", {"text": "ok"}, {"text": text, "media": media}))


@pytest.mark.parametrize("fps", [None, 0, -1, True, "4", float("inf")])
def test_frames_need_the_time_between_them(fps: Any) -> None:
    frames = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    row = {"text": "<video> ?", "media": [frames], "meta": {} if fps is None else {"fps": fps}}
    with pytest.raises(
        UserError, match=r"here:3: a video given as frames needs .* meta\.fps is .*; expected a number above 0"
    ):
        prompt_of(row, Columns(), "here:3", "p", None)
    assert prompt_of({**row, "meta": {"fps": 4}}, Columns(), "here:3", "p", None).media[0].shape == frames.shape


def test_hf_images_become_arrays(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["a"], "image": [Image.fromarray(PICTURE)]})
    data.save_to_disk(tmp_path / "d")
    (prompt,) = load("hf", dataset=tmp_path / "d", columns={"media": "image"})
    assert (prompt.media[0] == PICTURE).all()


def test_hf_errors_say_what_is_there(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = write("d.csv", "prompt,answer", "a,1", ",2")
    fails(f"{path}: no 'text' (there: prompt, answer; set columns.text)", "hf", dataset=path)
    fails("no 'promt'; did you mean 'prompt'?", "hf", dataset=path, columns={"text": "promt"})
    fails(f"{path}[1]: 'prompt' is null", "hf", dataset=path, columns={"text": "prompt"})
    fails(f"cannot load {path}: Unknown split", "hf", dataset=path, rows="tset")
    fails(f"no file {tmp_path}/absent.parquet", "hf", dataset=tmp_path / "absent.parquet")
    fails("unknown kind of file '.xls'", "hf", dataset=write("d.xls", "x"))
    fails("cannot load the hub dataset 'nobody/nothing'", "hf", dataset="nobody/nothing")
    fails(f"cannot load {tmp_path}", "hf", dataset=tmp_path)
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})).save_to_disk(tmp_path / "dict")
    fails("has no rows 'test' (there: train)", "hf", dataset=tmp_path / "dict", rows="test")


# split


def test_split_is_by_prompt_and_never_by_row(write: Write) -> None:
    lines = [f"Prompt {i % 20}" if i < 20 else f"prompt  {i % 20}" for i in range(60)]
    path = write("p.txt", *lines)
    parts = {
        name: load("txt", path=path, split={"part": name, "held_out": 0.25, "validation": 0.1})
        for name in ("train", "validation", "held_out")
    }
    assert {name: len(part) for name, part in parts.items()} == {"train": 39, "validation": 6, "held_out": 15}
    texts = [{p.text.lower().replace("  ", " ") for p in part} for part in parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert len(load("txt", path=path)) == len(load("txt", path=path, split="all")) == 60


def test_split_depends_on_the_seed_and_not_on_the_order(write: Write) -> None:
    lines = [f"prompt {i}" for i in range(50)]
    held = {p.text for p in load("txt", path=write("a.txt", *lines), split="held_out")}
    assert len(held) == 10
    assert {p.text for p in load("txt", path=write("b.txt", *lines[::-1]), split="held_out")} == held
    other = load("txt", path=write("a.txt", *lines), split={"part": "held_out", "seed": 1})
    assert {p.text for p in other} != held


def test_one_source_gives_all_its_parts(write: Write) -> None:
    source = build("prompts", {"name": "txt", "path": str(write("a.txt", *"abcdefghij")), "split": {"seed": 4}})
    assert len(source.load("train")) == 8 and len(source.load("held_out")) == 2 and len(source.load()) == 10


def test_split_by_picture_keeps_its_questions_together(write: Write, tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(PICTURE).save(tmp_path / f"{i}.png")
    rows = [{"text": f"question {i % 3}", "media": f"{i // 3}.png"} for i in range(15)]
    path = write("p.jsonl", *rows)
    held = load("jsonl", path=path, split={"part": "held_out", "by": "media"})
    assert len(held) == 3 and len({p.media for p in held}) == 1
    assert len(load("jsonl", path=path, split={"part": "held_out", "by": "text"})) == 5
    assert len(load("jsonl", path=path, split="held_out")) == 3


def test_split_errors(write: Write) -> None:
    fails("the train part of 2 prompts (1 distinct) is empty", "txt", path=write("p.txt", "a", "A"), split="train")
    fails("the validation part of 300", "list", items=["a"] * 300, split="validation")
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        load("list", items=["a"], split={"held_out": 0.6, "validation": 0.4})
    with pytest.raises(ValidationError, match="'held_out'"):
        load("list", items=["a"], split="heldout")


# shapes


def test_shapes_prompts_have_targets_and_disjoint_parts() -> None:
    split = {"held_out": 0.2, "validation": 0.1, "seed": 3}
    parts = {name: load("shapes", split={"part": name, **split}) for name in ("train", "validation", "held_out", "all")}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 216,
        "validation": 24,
        "held_out": 60,
        "all": 300,
    }
    assert len({p.id for name in ("train", "validation", "held_out") for p in parts[name]}) == 300
    assert all(p.target["kind"] == p.meta["kind"] for p in parts["all"])
    assert len(load("shapes", kind="count")) == 36
    by_id = {p.id: p.text for p in parts["all"]}
    assert all(by_id[p.id] == p.text for p in load("shapes", kind="relation", split="train"))
    json.dumps([p.target for p in parts["all"]])


def test_shapes_empty_parts_are_errors() -> None:
    fails("split.validation is 0", "shapes", split="validation")
    fails("split.held_out is 0", "shapes", split={"part": "held_out", "held_out": 0})


def test_shapes_examples_are_a_function_of_seed_and_index() -> None:
    source = build("examples", {"name": "shapes", "split": "train"})
    forward = [source.open(5).example(i) for i in range(40)]
    shared = source.open(5)
    for index in reversed(range(40)):
        again = shared.example(index)
        assert again.prompt == forward[index].prompt and (again.images[0] == forward[index].images[0]).all()
    assert len({s.images[0].tobytes() for s in forward}) == 40
    assert {s.prompt.text for s in forward} <= {p.text for p in load("shapes", split="train")}
    assert source.open(6).example(0).prompt != forward[0].prompt
    assert forward[0].images[0].dtype == np.uint8 and forward[0].images[0].shape == (24, 24, 3)


# pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        Image.fromarray(PICTURE + np.uint8(i)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i}\n")
    (tmp_path / "notes.md").write_text("no picture")
    return tmp_path


def examples(name: str, path: Path, **options: Any) -> Any:
    return build("examples", {"name": name, "path": str(path), **options}).open(0)


def test_folder_pairs_pictures_with_text_files(folder: Path) -> None:
    stream = examples("folder", folder)
    passes = [[stream.example(i) for i in range(start, start + 5)] for start in (0, 5, 10)]
    for found in passes:
        assert sorted(s.prompt.id for s in found) == [f"{i}.png" for i in range(5)]
        assert all((s.images[0] == PICTURE + np.uint8(int(s.prompt.text[-1]))).all() for s in found)
    assert len({tuple(s.prompt.id for s in found) for found in passes}) > 1
    assert stream.example(7).prompt == examples("folder", folder).example(7).prompt == passes[1][2].prompt
    assert examples("folder", folder, size=4).example(0).images[0].shape == (4, 4, 3)
    assert {examples("folder", folder, split="held_out").example(i).prompt.id for i in range(9)} == {
        s.prompt.id for s in passes[0]
    } - {examples("folder", folder, split="train").example(i).prompt.id for i in range(9)}


def test_folder_errors(folder: Path) -> None:
    (folder / "x").mkdir()
    with pytest.raises(UserError, match=f"no pictures or videos in {folder}/x"):
        examples("folder", folder / "x")
    with pytest.raises(UserError, match=f"no folder {folder}/y"):
        examples("folder", folder / "y")
    (folder / "0.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"0\.txt is empty; expected the caption of 0\.png"):
        examples("folder", folder)
    (folder / "0.txt").unlink()
    with pytest.raises(UserError, match=r"0\.png has no caption; expected a text file 0\.txt"):
        examples("folder", folder)


def test_jsonl_pairs(folder: Path, write: Write) -> None:
    path = write("pairs.jsonl", {"path": "0.png", "text": "zero", "id": "z"}, {"path": "1.png", "text": "one"})
    stream = examples("jsonl", path)
    found = {s.prompt.id: s for s in (stream.example(0), stream.example(1))}
    assert found["z"].prompt.text == "zero" and (found["z"].images[0] == PICTURE).all()
    assert found["pairs.jsonl:2"].prompt.text == "one"
    for line, message in (
        ({"path": "9.png", "text": "a"}, f":2: no file {folder}/9.png"),
        ({"text": "a"}, ":2: 'path' is None; expected the file name of a picture"),
        ({"path": "1.png"}, ":2: no 'text'"),
        ({"path": "1.png", "text": "one", "id": "z"}, ":2: id 'z' was already used"),
    ):
        path = write("bad.jsonl", {"path": "0.png", "text": "zero", "id": "z"}, line)
        with pytest.raises(UserError, match=re.escape(message)):
            examples("jsonl", path)
    with pytest.raises(UserError, match="holds no examples"):
        examples("jsonl", write("none.jsonl"))


def test_broken_pictures_are_named(folder: Path) -> None:
    whole = (folder / "0.png").read_bytes()
    for path in folder.glob("[1-4].*"):
        path.unlink()
    for content, message in (
        (whole[:60], "is broken"),
        (b"not a picture", "is not a picture"),
        (b"", "is not a picture"),
    ):
        (folder / "0.png").write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"{folder}/0.png {message}")):
            examples("folder", folder).example(0)
    (folder / "0.png").write_bytes(whole)
    stream = examples("folder", folder)
    (folder / "0.png").unlink()
    with pytest.raises(UserError, match=f"no file {folder}/0.png"):
        stream.example(0)


def test_pictures_become_rgb(folder: Path) -> None:
    for path in folder.glob("[1-4].*"):
        path.unlink()
    clear = np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], dtype=np.uint8)])
    for image, expected in (
        (Image.fromarray(clear), np.full_like(PICTURE, 255)),
        (Image.fromarray(PICTURE[..., 0]), np.repeat(PICTURE[..., :1], 3, axis=2)),
        (Image.new("P", (8, 6)), np.zeros_like(PICTURE)),
    ):
        image.save(folder / "0.png")
        assert (examples("folder", folder).example(0).images[0] == expected).all()


def test_pictures_of_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    with pytest.raises(
        UserError, match=r"deep\.png is broken: its pixels are of mode I[^\n]*expected 8 bits a channel"
    ):
        read_image(tmp_path / "deep.png")
