"""Rewards that look for text and objects: the real reader, tiny random detectors of the real classes, and the rules around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mmrl.config.resolve import load
from mmrl.errors import ConfigError
from mmrl.reward import RewardSet
from mmrl.rewards.preference.clip import ClipScore
from mmrl.rewards.visual.detector import Detection, Mask2Former, Owl
from mmrl.rewards.visual.objects import COLORS, GenEval
from mmrl.rewards.visual.ocr import Ocr, all_written, quoted, written
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample
from tests.unit.test_preference_models import tiny_clip

CPU = torch.device("cpu")
CONFIG = """
policy: {name: tiny_sd3}
stages:
  rl:
    kind: rl
    steps: 1
    prompts: {name: list, items: ["a red circle", 'a "sign"']}
    prompts_per_step: 2
    group_size: 2
    rollout: {num_steps: 4, sampler: {kind: flow_sde, level: 0.7}}
    rewards: {text: {name: ocr}}
    objective: {advantage: {name: group, scale: group}, surrogate: {name: clip, low: 1e-4, high: 1e-4}}
    optimizer: {lr: 1e-4}
"""


def sign(text: str) -> np.ndarray:
    image = Image.new("RGB", (270, 270), "white")  # a square: the reader makes the shorter side 736 pixels
    ImageDraw.Draw(image).text((20, 110), text, fill="black", font=ImageFont.load_default(size=40))
    return np.asarray(image)


class Reader(Ocr):
    """Reads what the picture's first pixel says."""

    def setup(self, device: torch.device) -> None:
        pass

    def read(self, image: np.ndarray) -> str:
        if image[0, 0, 0] == 255:
            raise RuntimeError("the reader broke")
        return ("", "Hello World", "Helo Wrld")[image[0, 0, 0]]


def flat(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, dtype=np.uint8)


def test_real_text_is_read() -> None:
    pytest.importorskip("rapidocr")
    reward = Ocr()
    reward.setup(CPU)
    asked = Prompt("a", 'a sign that says "Hello World"')
    samples = [Sample(asked, images=(sign(text),)) for text in ("Hello World", "Hello Moon", "")]
    found = reward.score(samples)
    assert found[0] == 1.0 and 0.3 < found[1] < 0.8 and found[2] == 0.0  # type: ignore[operator]
    assert [reward.score([one])[0] for one in samples] == found
    assert reward._engine.text_score == 0  # else what is read with less than 0.5 were left out
    (on_its_head,) = reward.score([Sample(asked, images=(sign("Hello World")[::-1, ::-1],))])
    assert on_its_head is not None and on_its_head < 0.9
    surely = Ocr(min_confidence=0.9)
    surely.setup(CPU)
    assert surely.read(sign("Hello World")[::-1, ::-1]) == "" != reward.read(sign("Hello World")[::-1, ::-1])


def test_quotes_targets_and_videos() -> None:
    assert quoted('a “curly” and a "straight" and «angle» and \'\' ""') == ["curly", "straight", "angle"]
    reward = Reader(every=2)
    video = np.stack([flat(1), flat(0), flat(2), flat(0)])
    prompt = Prompt("a", 'the words "Hello World"')
    assert reward.score([Sample(prompt, video=video, meta={"fps": 8})]) == [pytest.approx((1 + 0.8) / 2)]
    two = Prompt("b", 'a "Hello World" and a "zzzz"')
    assert reward.score([Sample(two, images=(flat(1),))]) == [0.5]
    target = Prompt("c", "without quotes", target="hello  WORLD")
    assert reward.score([Sample(target, images=(flat(1),))]) == [1.0]
    assert written("a wall of hello world text", "Hello World") == 1.0
    assert written("a wall of hello world text", "Hello World", containment=False) == 0.0
    assert written("café", "cafe") == 0.75


def test_several_texts_are_each_looked_for_in_the_lines_that_fit_best() -> None:
    assert all_written("Helo\nWorld", ["Hello", "World"]) == pytest.approx((0.8 + 1) / 2)
    assert all_written("Hello\nWorld", ["World", "Hello"], containment=False) == 1.0
    assert all_written("Hello\nWorld", ["Hello World", "zzz"], containment=False) == 0.5  # over two lines
    assert all_written("Hello\nWorld", ["Hello"], containment=False) == 0.0  # one text: in all that is read
    rng = np.random.default_rng(0)
    for _ in range(20):
        lines = ["".join(rng.choice(list("abc"), rng.integers(0, 5))) for _ in range(4)]
        texts = ["".join(rng.choice(list("abc"), 4)) for _ in range(2)]
        runs = ["\n".join(lines[i:j]) for i in range(4) for j in range(i + 1, 5)]
        for containment in (True, False):
            wanted = [max(written(run, text, containment) for run in runs) for text in texts]
            assert all_written("\n".join(lines), texts, containment) == pytest.approx(sum(wanted) / 2)


def test_prompts_that_cannot_be_scored_are_found_before_a_run() -> None:
    Ocr().check_prompt(Prompt("a", 'a "sign"'))
    Ocr().check_prompt(Prompt("a", "a sign", target="sign"))
    with pytest.raises(ValueError, match="prompt 'b' has no text in double quotes"):
        Ocr().check_prompt(Prompt("b", "a sign"))
    GenEval().check_prompt(Prompt("c", "two cups", target={"include": [{"class": "cup", "count": 2}]}))
    for target, told in (({"count": 2}, "no GenEval row"), ({"include": [{"class": "cup"}]}, "class and count"),
                         ({"exclude": [{"class": "cup", "count": 0}]}, "class and count"),
                         ({"include": [{"class": "cup", "count": 1, "color": "grey"}]}, "color 'grey'; there is: red,"),
                         ({"include": [place("near", 0)]}, "expected one of left of"), ({"include": [place("above", 1)]}, "earlier"),
                         ({"include": [place("above", 0)]}, "earlier"), ({"include": [place("above", -1)]}, "earlier")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            GenEval().check_prompt(Prompt("d", "cups", target=target))


def place(relation: str, index: int) -> dict[str, Any]:
    return {"class": "cup", "count": 1, "position": [relation, index]}


def test_a_config_with_such_a_prompt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    with pytest.raises(ConfigError, match=r"reward 'text' cannot score .*'.*' has no text in double quotes"):
        load(str(path))
    path.write_text(CONFIG.replace('"a red circle"', "'the word \"red\"'"))
    load(str(path))


def test_a_reader_that_breaks_is_no_zero() -> None:
    given = [Sample(Prompt("a", 'a "sign"'), images=(flat(255),)), Sample(Prompt("b", "no quotes"), images=(flat(1),)),
             Sample(Prompt("c", 'a "sign"'))]  # fmt: skip
    scores = RewardSet({"ocr": (Reader(), 1.0)}).score(given)
    assert scores.status[:, 0].tolist() == [FAILED, FAILED, SKIPPED]
    assert "the reader broke" in scores.messages[0] and "no text in double quotes" in scores.messages[1]


class Drawn:
    """Finds the rectangles that a test says are there."""

    def __init__(self, *objects: Detection) -> None:
        self.objects = list(objects)

    def detect(self, pictures: Any, kinds: Any) -> list[list[Detection]]:
        return [self.objects for _ in pictures]


def geneval(folder: Path, detector: Any, **options: Any) -> GenEval:
    class Own(GenEval):
        def load_detector(self, device: torch.device) -> Any:
            return detector

    reward = Own(clip=str(folder), **options)
    reward.setup(CPU)
    return reward


def test_thresholds_and_limits_of_geneval(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path)
    cups = [Detection("cup", (20 * i, 0, 20 * i + 10, 10), score) for i, score in enumerate((0.99, 0.95, 0.5, 0.1))]
    picture = np.zeros((100, 100, 3), dtype=np.uint8)

    def value(row: dict[str, Any], **options: Any) -> Any:
        reward = geneval(folder, Drawn(*cups), **options)
        return reward.score([Sample(Prompt("a", "cups", target=row), images=(picture,))])[0]

    three = {"include": [{"class": "cup", "count": 3}]}
    assert value(three, mode="correct") == 1.0 and value(three, mode="strict") == 1.0
    assert value({"tag": "counting"} | three, mode="correct") == 0.0  # two are sure enough
    assert value({"tag": "counting"} | three) == pytest.approx(2 / 3)
    assert value(three, most=2, mode="correct") == 0.0
    colored = {"include": [{"class": "cup", "count": 1, "color": "red"}]}
    assert value(colored, mode="correct") in (0.0, 1.0)
    with pytest.raises(ValueError, match="no GenEval row"):
        value({})
    assert value(three, threshold=0.5, mode="correct") == 0.0  # surer than 0.5, as in the benchmark
    cups.append(Detection("cup", (40, 0, 50, 11), 0.4))
    four = {"include": [{"class": "cup", "count": 4}]}
    assert value(four, mode="correct") == 1.0 and value(four, mode="correct", max_overlap=0.9) == 0.0


def test_the_colour_is_that_of_the_object_alone(tmp_path: Path) -> None:
    """With the mask, pixels around the object do not matter."""
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    mask[12, 12] = False
    one = Detection("cup", (10.0, 10.0, 30.0, 30.0), 0.9, mask)
    reward = geneval(tiny_clip(tmp_path), Drawn(one))
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    other = np.where(mask[..., None], picture, rng.integers(0, 256, picture.shape, dtype=np.uint8))
    assert reward._color(picture, one) == reward._color(other, one) and reward._color(picture, one) in COLORS
    seen: list[torch.Tensor] = []

    class Watched(ClipScore):
        def picture_features(self, pictures: Any) -> torch.Tensor:
            seen.extend(pictures)
            return super().picture_features(pictures)

    reward._clip = Watched(path=reward.clip)
    reward._clip.setup(CPU)
    reward._color(picture, one)
    blank = Image.new("RGB", (40, 40), "#999")
    wanted = Image.composite(Image.fromarray(picture), blank, Image.fromarray(mask)).crop((10, 10, 30, 30))
    assert torch.equal((seen[0] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(wanted)))
    for box in ((3.2, 3.2, 3.4, 3.4), (40.0, 40.0, 40.0, 40.0)):  # a pixel at least
        reward._color(picture, Detection("cup", box, 0.9))
        assert seen[-1].shape == (3, 1, 1)


def tiny_mask2former(folder: Path) -> Path:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
                      out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=5,
        id2label={0: "cup", 1: "dog", 2: "cat"}, label2id={"cup": 0, "dog": 1, "cat": 2},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_mask2former_from_a_folder(tmp_path: Path) -> None:
    folder = tiny_mask2former(tmp_path / "detector")
    detector = Mask2Former(str(folder), None, 0.0, CPU)
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    (found,) = detector.detect([picture], [["cup"]])
    assert found and [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert one.mask is not None and one.mask.shape == (48, 80) and one.kind in ("cup", "dog", "cat")
        x0, y0, x1, y1 = (int(side) for side in one.box)
        assert one.mask[y0:y1, x0:x1].sum() == one.mask.sum() > 0  # all of it, and nothing to spare
        assert one.mask[[y0, y1 - 1]].any(1).all() and one.mask[:, [x0, x1 - 1]].any(0).all()
    with pytest.raises(ValueError, match="does not know 'horse'"):
        detector.detect([picture], [["horse"]])
    reward = GenEval(path=str(folder), clip=str(tiny_clip(tmp_path / "clip")), threshold=0.0)
    reward.setup(CPU)
    row = {"include": [{"class": "cup", "count": 1, "color": "red"}], "exclude": [{"class": "dog", "count": 3}]}
    scores = RewardSet({"g": (reward, 1.0)}).score([Sample(Prompt("a", "x", target=row), images=(picture,))])
    assert scores.status[0, 0] == OK and 0 <= scores.values[0, 0] <= 1


def test_classes_go_by_the_benchmarks_names(tmp_path: Path) -> None:
    folder = tiny_mask2former(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "mouse", "1": "sofa", "2": "cat"}
    (folder / "config.json").write_text(json.dumps(config))
    detector = Mask2Former(str(folder), None, 0.0, CPU)
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    (found,) = detector.detect([picture], [["computer mouse", "couch", "cat"]])
    assert found and {one.kind for one in found} <= {"computer mouse", "couch", "cat"}
    with pytest.raises(ValueError, match="does not know 'tv'"):
        detector.detect([picture], [["tv"]])


def tiny_owl(folder: Path) -> Path:
    from transformers import (
        CLIPTokenizerFast,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        model.box_head.dense2.weight.normal_()
        model.box_head.dense2.bias.fill_(0.5)
    model.save_pretrained(folder)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(letter + "</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocab = {word: i for i, word in enumerate(["!", "<|startoftext|>", "<|endoftext|>", *letters])}
    tokenizer = CLIPTokenizerFast(vocab=vocab, merges=[], model_max_length=16)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def test_owlv2_finds_named_objects_inside_the_picture(tmp_path: Path) -> None:
    folder = tiny_owl(tmp_path / "owl")
    detector = Owl(str(folder), None, 0.0, CPU)
    pictures = [np.random.default_rng(k).integers(0, 256, (20, 80, 3), dtype=np.uint8) for k in range(2)]
    found = detector.detect(pictures, [["cup", "dog"], ["cat"]])
    assert {one.kind for one in found[0]} <= {"cup", "dog"} and {one.kind for one in found[1]} == {"cat"}
    assert [one.score for one in found[0]] == sorted((one.score for one in found[0]), reverse=True)
    for one in found[0] + found[1]:
        assert 0 <= one.box[0] < one.box[2] <= 80 and 0 <= one.box[1] < one.box[3] <= 20
    inputs = detector.processor(
        text=[["a photo of a cup", "a photo of a dog"]], images=Image.fromarray(pictures[0]), return_tensors="pt"
    )
    out = detector.model(**inputs)
    wanted = []
    for logits, (x, y, w, h) in zip(out.logits[0], out.pred_boxes[0].tolist(), strict=True):
        sides = [(x - w / 2) * 80, (y - h / 2) * 80, (x + w / 2) * 80, (y + h / 2) * 80]  # shares of the padded square
        clipped = [min(max(side, 0), most) for side, most in zip(sides, (80, 20, 80, 20), strict=True)]
        if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            wanted.append((float(logits.max().sigmoid()), clipped))
    wanted.sort(key=lambda pair: -pair[0])
    assert len(wanted) == len(found[0]) < len(out.logits[0])
    for one, (score, box) in zip(found[0], wanted, strict=True):
        assert one.score == pytest.approx(score, abs=1e-5) and one.box == pytest.approx(box, abs=1e-3)
    with pytest.raises(ValueError, match="is no owlv2; name one"):
        GenEval(detector="owlv2")
    reward = GenEval(detector="owlv2", path=str(folder), clip=str(tiny_clip(tmp_path / "clip")), threshold=0.0)
    reward.setup(CPU)
    row = {"include": [{"class": "cup", "count": 1, "color": "red"}]}
    scores = RewardSet({"g": (reward, 1.0)}).score([Sample(Prompt("a", "x", target=row), images=(pictures[0],))])
    assert scores.status[0, 0] == OK
