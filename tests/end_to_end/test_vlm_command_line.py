"""A vision-language run as a user meets it: what it leaves, what others can load, and bad input in one clear line."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.helpers import metrics, mmrl
from tests.end_to_end.vlm_helpers import TINY_VLM, mmrl_inside, write_vlm_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    mmrl_inside("train", write_vlm_config(folder), f"run.dir={folder / 'run'}")
    return folder / "run"


# ---- what a run leaves


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    for name in ("config.yaml", "provenance.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (run / name).is_file(), name
    rl = json.loads((run / "summary.json").read_text())["stages"]["rl"]
    for when in ("before", "after"):
        assert {"letters", "format", "exact", "exact/kind=count_shapes", "exact/blind", "letters/blind"} <= rl[
            when
        ].keys()
        assert all(0 <= rl[when][name] <= 1 for name in ("exact", "exact/blind", "format", "format/blind"))
    assert (rl["before"]["total"], rl["after"]["total"]) == (5, 7) and rl["samples"] == 18
    lines = metrics(run)
    assert [line["total"] for line in lines if line["stage"] == "warm"] == [1, 2, 3, 4, 5]
    losses = [line["loss"] for line in lines if line["stage"] == "warm"]
    assert losses[-1] < losses[0]
    steps = [line for line in lines if "ratio" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert {"reward/letters", "kl", "papo_kl", "entropy", "rollout/tokens", "rollout/finished", "clip_high"} <= steps[
        0
    ].keys()
    assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-4)


def test_the_report_shows_questions_with_their_answers_before_and_after(run: Path) -> None:
    (run / "report.html").unlink()
    assert mmrl_inside("report", run).stdout.strip().endswith("report.html")
    page = html.unescape((run / "report.html").read_text())
    shown = [
        json.loads((run / "samples" / f"{name}.json").read_text()) for name in ("000005_rl_before", "000007_rl_after")
    ]
    assert len(shown[0]) == len(shown[1]) == 4
    for before, after in zip(*shown, strict=True):
        assert before["prompt"] == after["prompt"] and before["prompt"] in page
        assert before["text"] in page and after["text"] in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page, "one file, no network"


def test_check_prints_geometry_without_a_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl.vlm.models import TinyQwen3VL

    def refuse(self: Any, device: Any) -> None:
        raise AssertionError("check must not load weights")

    monkeypatch.setattr(TinyQwen3VL, "make_model", refuse)
    monkeypatch.setenv("COLUMNS", "400")  # so that no path is broken over two lines
    out = mmrl_inside("check", write_vlm_config(tmp_path), "stages.rl.group_size=4").stdout
    assert "3 prompts x 4 samples = 12 per step" in out and "10 of 10 steps trained" in out
    assert "10 rollout, 3 update" in out, "the policy, its reference and its masked view"
    assert "4 prompts x 1 samples = 4" in out and "command line" in out and "tiny_vlm.yaml:" in out


# ---- what others can load


def test_the_exported_model_answers_the_same_in_plain_transformers(run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmrl.rollout import Draw, Prompt
    from mmrl.run import trained_policy

    exported = mmrl_inside("export", run, "--to", "transformers", "--out", tmp_path / "plain").stdout.strip()
    assert "do_sample=False" in (Path(exported) / "README.md").read_text()
    model: Any = AutoModelForImageTextToText.from_pretrained(exported)
    processor: Any = AutoProcessor.from_pretrained(exported)
    picture = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    resolved, policy, _ = trained_policy(run)
    for question, images in (("How many red circles are there?", (picture,)), ("Answer with a number.", ())):
        content = [{"type": "image", "path": str(tmp_path / "picture.png")}] * len(images)
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        theirs = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ours = policy.generate([Draw(Prompt("q", question, images), 0, 0, 0, 0)], resolved.evaluation.plan)[0].text
        assert ours == theirs and ours
    wrote = mmrl_inside("sample", run, "--prompt", question, "--out", tmp_path / "wrote").stdout.split()
    assert [Path(path).suffix for path in wrote[-2:]] == [".json", ".png"]
    assert [answer["text"] for answer in json.loads(Path(wrote[-2]).read_text())] == [theirs]
    assert "exists and is not empty" in failure("export", run, "--to", "transformers", "--out", tmp_path / "plain")
    assert "exports to: transformers, peft" in failure("export", run, "--to", "diffusers", "--out", tmp_path / "no")


# ---- bad input


def failure(*arguments: object) -> str:
    """The one line of an error."""
    done = mmrl_inside(*arguments, check=False)
    assert done.code == 2, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    return errors[0]


def puzzles(tmp_path: Path, old: str, new: str) -> str:
    assert old in TINY_VLM
    return failure("check", write_vlm_config(tmp_path, TINY_VLM.replace(old, new, 1)))


def test_a_puzzle_level_that_does_not_exist(tmp_path: Path) -> None:
    error = puzzles(tmp_path, "{kind: count_shapes, size: 56}]", "{kind: count_shapes, level: 9, size: 56}]")
    assert "puzzle 'count_shapes' has no level 9 (there: 1: " in error and "tiny_vlm.yaml:" in error


def test_a_misspelt_puzzle_kind(tmp_path: Path) -> None:
    error = puzzles(tmp_path, "{kind: rotation, ", "{kind: rotaton, ")
    assert "unknown puzzle 'rotaton'; did you mean 'rotation'?" in error and "stages.warm.examples" in error


def test_a_misspelt_option_of_a_puzzle(tmp_path: Path) -> None:
    assert "did you mean 'reference'" in puzzles(tmp_path, "reference: false", "refrence: false")


def from_file(tmp_path: Path, media: str, *overrides: str) -> tuple[Any, ...]:
    """The arguments of a run on three questions in a file, of which the second one has a medium."""
    questions = [
        {"text": "How many?", "id": "a"},
        {"text": "And how many here?", "id": "b", "media": media},
        {"text": "One?"},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    prompts = f"{{name: jsonl, path: {tmp_path / 'questions.jsonl'}}}"
    return (
        "train", write_vlm_config(tmp_path), f"run.dir={tmp_path / 'run'}", "stages.warm=null", "stages.rl.steps=1",
        f"stages.rl.prompts={prompts}", f"evaluation.prompts={prompts}", "evaluation.rewards={}",
        "stages.rl.rewards={letters: {name: 'parts.py:letters'}}", *overrides,
    )  # fmt: skip


def test_a_missing_image_file(tmp_path: Path) -> None:
    """Found before a weight is loaded; through a process of its own, for the exit code that a shell sees."""
    done = mmrl(*from_file(tmp_path, "no/such.png"), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"questions.jsonl:2: 'media' names {tmp_path / 'no/such.png'}, which is no file" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["broken.mp4", "broken.png"])
def test_an_unreadable_video_or_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is neither a picture nor a video" * 50)
    error = failure(*from_file(tmp_path, name))
    assert "prompt 'b', medium 1: " in error and str(tmp_path / name) in error
    assert ("video" if name.endswith("mp4") else "picture") in error and "can be read" in error


def test_a_chat_template_without_an_image_slot(tmp_path: Path) -> None:
    from mmrl.vlm.tiny import build_tiny_qwen3vl

    build_tiny_qwen3vl(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    config = write_vlm_config(tmp_path)
    model = f"policy={{name: vlm, path: {tmp_path / 'model'}, dtype: float32}}"
    error = failure("train", config, f"run.dir={tmp_path / 'run'}", model)
    assert (
        "has 1 images, but the model's chat template writes 0 image placeholders" in error
        and "prompt 'demonstrations:" in error
    )


def test_prompts_that_are_too_long_are_left_out_counted_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (112, 112)).save(tmp_path / "large.png")
    done = mmrl_inside(*from_file(tmp_path, "large.png", "policy.max_prompt_tokens=24", "stages.rl.prompts_per_step=2"))
    assert done.stderr.count("left out: 1 of 3 prompts are too long for the policy (tokens): b (") == 2, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]["rl"]["before"]["samples"] == 2
    error = failure(*from_file(tmp_path / "run", "../large.png", "policy.max_prompt_tokens=2"))
    assert "3 of 3 prompts are too long" in error and "raise policy.max_prompt_tokens" in error
