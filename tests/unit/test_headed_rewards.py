"""HPSv3, VideoAlign and EditReward: tiny random models of the published classes and file layouts, against one row at a time."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmrl.errors import UserError
from mmrl.reward import RewardSet
from mmrl.rewards.preference.edit_reward import EditReward
from mmrl.rewards.preference.headed_inputs import Row, encode, places, sized_frames, sized_picture
from mmrl.rewards.preference.headed_state import divided, merged
from mmrl.rewards.preference.hpsv3 import HpsV3, best
from mmrl.rewards.preference.rubric import read_rubric
from mmrl.rewards.preference.video_align import MEAN_STD, VideoAlign, frame_numbers, greyscale
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample
from tests.unit.headed_models import (
    AXES,
    AXES_QUESTION,
    PASS_QUESTIONS,
    PIXELS,
    QUESTION,
    Tiny,
    applied,
    save_edit_reward,
    save_hpsv3,
    save_video_align,
    two_layer,
    write_config,
)
from tests.unit.test_preference_models import picture

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "two blue squares left of a green triangle, and a star")
SHAPES = ((60, 100), (130, 70), (56, 84))
AXES_SHORT = ("vq", "mq", "ta")


def asked(k: int) -> Prompt:
    return Prompt(str(k), PROMPTS[k % 2], media=(picture(50 + k, 90, 60),))


def drawn() -> list[Sample]:
    return [Sample(asked(k), images=(picture(k, *shape),)) for k, shape in enumerate(SHAPES)]


def clip(seed: int, frames: int, height: int = 60, width: int = 90, fps: float = 4) -> Sample:
    return Sample(asked(seed), video=np.stack([picture(100 * seed + t, height, width) for t in range(frames)]),
                  meta={"fps": fps})  # fmt: skip


def filmed() -> list[Sample]:
    return [clip(0, 8), clip(1, 13, 70, 70), clip(2, 5, fps=2)]


def scored(reward: Any, samples: list[Sample]) -> list[float]:
    """Scores through a reward set, the same alone as in a batch."""
    together = RewardSet({"r": (reward, 1.0)}).score(samples)
    assert (together.status == OK).all(), together.messages
    alone = [RewardSet({"r": (reward, 1.0)}).score([one]).values[0, 0] for one in samples]
    np.testing.assert_allclose(together.values[:, 0], alone, rtol=2e-4, atol=2e-5)
    found = together.values[:, 0].tolist()
    assert len({round(value, 4) for value in found}) == len(found)  # it looks
    return found


def ready(kind: Any, **options: Any) -> Any:
    reward = kind(dtype=options.pop("dtype", "float32"), **options)
    reward.setup(CPU)
    return reward


def pil(array: np.ndarray) -> Image.Image:
    """Sized by a way of its own: the formula of Qwen-VL with equal bounds, and Pillow."""
    height, width = array.shape[:2]
    sides = [round(one / 28) * 28 for one in (height, width)]
    if sides[0] * sides[1] > PIXELS:
        sides = [math.floor(one / math.sqrt(height * width / PIXELS) / 28) * 28 for one in (height, width)]
    elif sides[0] * sides[1] < PIXELS:
        sides = [math.ceil(one * math.sqrt(PIXELS / (height * width)) / 28) * 28 for one in (height, width)]
    return Image.fromarray(array).resize((sides[1], sides[0]))


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def hpsv3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path, Any]:
    folder = tmp_path_factory.mktemp("hpsv3")
    tiny, head = Tiny(request.param, folder, ["<|Reward|>"]), two_layer(64)
    save_hpsv3(tiny, folder, head)
    return tiny, folder, head


@pytest.fixture(scope="module")
def video_align(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path, Any, Any]:
    folder = tmp_path_factory.mktemp("video_align")
    tiny = Tiny("qwen2_vl", folder, AXES)
    head = torch.randn(1, 64, generator=torch.Generator().manual_seed(6))
    return tiny, folder, save_video_align(tiny, folder, head), head


def test_hpsv3_is_the_first_output_at_the_reward_token(hpsv3: Any) -> None:
    tiny, folder, head = hpsv3
    reward = ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS)
    found = scored(reward, drawn())
    for sample, value in zip(drawn(), found, strict=True):
        (hidden,) = tiny.hidden(QUESTION.replace("{prompt}", sample.prompt.text), [pil(sample.images[0])])
        assert value == pytest.approx(applied(head, hidden)[0], rel=1e-3, abs=1e-4)
    several = Sample(asked(0), images=tuple(one.images[0] for one in drawn()[::2]))
    alone = [reward.score([Sample(asked(0), images=(image,))])[0] for image in several.images]
    assert reward.score([several, Sample(asked(0))]) == [pytest.approx(np.mean(alone), rel=1e-4), None]
    assert hashlib.sha256(QUESTION.encode()).hexdigest() in reward.revision


def test_hpsv3_leaves_its_second_output(hpsv3: Any) -> None:
    tiny, folder, head = hpsv3
    options = {"path": str(folder), "base": tiny.base, "pixels": PIXELS}
    given = [*drawn(), Sample(asked(0), images=tuple(one.images[0] for one in drawn()[::2])), Sample(asked(0))]
    scores = RewardSet({"it": (ready(HpsV3, **options), 1.0)}).score(given)
    assert scores.status[:, 0].tolist() == [OK] * 4 + [SKIPPED]
    second = []
    for sample in (*drawn(), Sample(asked(0), images=drawn()[2].images)):
        (hidden,) = tiny.hidden(QUESTION.replace("{prompt}", sample.prompt.text), [pil(sample.images[0])])
        second.append(applied(head, hidden)[1])
    wanted = [*second[:3], (second[0] + second[3]) / 2]
    found = [one.meta["components"]["it"] for one in given[:4]]
    assert found == [{"log_sigma": pytest.approx(value, rel=1e-3, abs=1e-4)} for value in wanted]
    film = clip(0, 8)
    ready(HpsV3, **options, video="best").score([film])
    assert film.video is not None
    frames = [Sample(film.prompt, images=(one,)) for one in film.video]
    values = ready(HpsV3, **options).score(frames)
    top = sorted(range(8), key=lambda k: -values[k])[:2]
    mean = sum(frames[k].meta["components"]["log_sigma"] for k in top) / 2
    assert film.meta["components"] == {"log_sigma": pytest.approx(mean, rel=1e-4, abs=1e-5)}


def test_positions_are_counted_through_unless_asked_otherwise(hpsv3: Any) -> None:
    tiny, folder, head = hpsv3
    sample = drawn()[0]
    sequential, mrope = (
        ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS, positions=one).score([sample])[0]
        for one in ("sequential", "mrope")
    )
    text = QUESTION.replace("{prompt}", sample.prompt.text)
    (other,) = tiny.hidden(text, [pil(sample.images[0])], mrope=True)
    assert mrope == pytest.approx(applied(head, other)[0], rel=1e-3, abs=1e-4)
    assert abs(sequential - mrope) > 1e-2


def test_bfloat16_keeps_the_head_in_float32(hpsv3: Any) -> None:
    tiny, folder, _ = hpsv3
    reward = ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS, dtype="bfloat16")
    assert {one.dtype for one in reward._model.backbone.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in reward._model.head.parameters()} == {torch.float32}
    assert all(one is not None and math.isfinite(one) for one in reward.score(drawn()))
    assert HpsV3().dtype == VideoAlign().dtype == EditReward().dtype == "bfloat16"


def test_bfloat16_rounds_the_frequencies_as_the_originals_do(hpsv3: Any) -> None:
    """They cast the whole module, and with it the buffers; far into a row a rounded frequency is another angle."""
    tiny, folder, head = hpsv3
    reward = ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS, dtype="bfloat16")
    sample = Sample(Prompt("long", "a red circle and " * 40 + "a star"), images=drawn()[0].images)
    text = QUESTION.replace("{prompt}", sample.prompt.text)
    (hidden,) = tiny.hidden(text, [pil(sample.images[0])], model=copy.deepcopy(tiny.model).to(torch.bfloat16).model)
    assert reward.score([sample])[0] == pytest.approx(applied(head, hidden)[0], rel=1e-4)
    turns = reward._model.backbone.language_model.rotary_emb
    exact, _ = turns.compute_default_rope_parameters(turns.config)
    assert turns.inv_freq.tolist() == [float(one.bfloat16()) for one in exact] != exact.tolist()


@pytest.mark.parametrize("dtype, close", [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_odd_sizes_and_long_prompts_are_the_same_in_a_batch(hpsv3: Any, dtype: str, close: float) -> None:
    tiny, folder, _ = hpsv3
    reward = ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS, dtype=dtype)
    shown = [("a", (1, 1)), ("b " * 200, (29, 300)), ("", (3, 590))]
    rows = [Sample(Prompt(text, text), images=(picture(7, *shape),)) for text, shape in shown]
    assert reward.score(rows) == pytest.approx([reward.score([one])[0] for one in rows], rel=close, abs=close)
    with pytest.raises(ValueError, match="aspect ratio"):
        reward.score([Sample(Prompt("strip", "x"), images=(picture(7, 2, 402),))])


def test_videos_by_hpsv3(hpsv3: Any) -> None:
    tiny, folder, _ = hpsv3
    options = {"path": str(folder), "base": tiny.base, "pixels": PIXELS}
    pictures = ready(HpsV3, **options)
    samples = [clip(0, 8), clip(1, 3)]

    def frames(sample: Sample, prompt: str) -> list[float]:
        each = [Sample(Prompt("f", prompt), images=(one,)) for one in (() if sample.video is None else sample.video)]
        return pictures.score(each)

    wanted = [float(np.mean(frames(one, "A high-quality image"))) for one in samples]
    assert ready(HpsV3, **options, video="mean").score(samples) == pytest.approx(wanted, rel=1e-4)
    tops = [sorted(frames(one, one.prompt.text))[-count:] for one, count in zip(samples, (2, 1), strict=True)]
    found = scored(ready(HpsV3, **options, video="best"), samples)
    assert found == pytest.approx([sum(top) / len(top) for top in tops], rel=1e-4)
    thinned = ready(HpsV3, **options, video="mean", every=3)
    assert thinned.score(samples[:1]) == pytest.approx(
        [np.mean(frames(samples[0], "A high-quality image")[::3])], rel=1e-4
    )
    assert thinned.inputs() == ("video",) and thinned.score(drawn()[:1]) == [None]
    assert best([0, 1, 0, 0, 0, 1, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 0, 2], 0.3) == [4, 5, 6]


def test_video_align_reads_three_axes_of_an_adapted_model(video_align: Any) -> None:
    tiny, folder, adapted, head = video_align
    options = {"path": str(folder), "base": tiny.base, "min_pixels": 28 * 28}
    found = {of: scored(ready(VideoAlign, **options, of=of), filmed()) for of in ("overall", *AXES_SHORT)}
    raw = {of: ready(VideoAlign, **options, of=of, normalise=False).score(filmed()) for of in AXES_SHORT}
    vector = head[0].double().tolist()
    for row, sample in enumerate(filmed()):
        assert sample.video is not None
        numbers = frame_numbers(len(sample.video), sample.meta["fps"], 2.0)
        shown = torch.from_numpy(sized_frames(sample.video[numbers], 28, 28 * 28, PIXELS)).permute(0, 3, 1, 2)
        text = AXES_QUESTION.replace("{text_prompt}", sample.prompt.text)
        total = 0.0
        for axis, hidden in zip(AXES_SHORT, tiny.hidden(text, video=shown, model=adapted), strict=True):
            plain = sum(w * h for w, h in zip(vector, hidden.tolist(), strict=True))
            mean, std = MEAN_STD[axis]
            assert raw[axis][row] == pytest.approx(plain, rel=1e-3, abs=1e-3)
            assert found[axis][row] == pytest.approx((plain - mean) / std, rel=1e-3, abs=1e-3)
            total += (plain - mean) / std
        assert found["overall"][row] == pytest.approx(total, rel=1e-3, abs=2e-3)


def test_video_align_leaves_the_axes_that_it_looked_at(video_align: Any) -> None:
    tiny, folder, _, _ = video_align
    options = {"path": str(folder), "base": tiny.base, "min_pixels": 28 * 28}

    def parts(**more: Any) -> tuple[list[float], list[dict[str, float]]]:
        given = filmed()
        scores = RewardSet({"it": (ready(VideoAlign, **options, **more), 1.0)}).score(given)
        assert (scores.status == OK).all(), scores.messages
        return scores.values[:, 0].tolist(), [one.meta["components"]["it"] for one in given]

    alone = {of: ready(VideoAlign, **options, of=of).score(filmed()) for of in AXES_SHORT}
    grey = ready(VideoAlign, **options, of="mq", grey=True).score(filmed())
    total, found = parts()
    for row, axes in enumerate(found):
        assert axes == {of: pytest.approx(alone[of][row], abs=1e-5) for of in AXES_SHORT}
        assert sum(axes.values()) == pytest.approx(total[row], abs=1e-5)
    assert [axes.keys() for axes in parts(of="ta")[1]] == [set(AXES_SHORT)] * 3
    for row, axes in enumerate(parts(grey=True)[1]):
        assert axes["mq"] == pytest.approx(grey[row], abs=1e-5) and abs(axes["mq"] - alone["mq"][row]) > 1e-4
        assert axes["vq"] == pytest.approx(alone["vq"][row], abs=1e-5)
    assert [axes.keys() for axes in parts(grey=True, of="mq")[1]] == [{"mq"}] * 3
    assert [axes.keys() for axes in parts(grey=True, of="vq")[1]] == [{"vq", "ta"}] * 3


def test_the_checkpoints_constants_win(video_align: Any) -> None:
    tiny, folder, _, _ = video_align
    raw = ready(VideoAlign, path=str(folder), base=tiny.base, min_pixels=784, normalise=False, of="mq").score(filmed())
    own = {"VQ_mean": 1.0, "VQ_std": 2.0, "MQ_mean": -0.5, "MQ_std": 4.0, "TA_mean": 0.25, "TA_std": 0.5}
    try:
        write_config(folder, inference_config=own)
        found = ready(VideoAlign, path=str(folder), base=tiny.base, min_pixels=784, of="mq").score(filmed())
        assert found == pytest.approx([(value + 0.5) / 4 for value in raw], rel=1e-5)
        for config, told in (
            (own | {"TA_std": 0.0}, "not positive"),
            ({"VQ_mean": 1.0}, "mean and a std of every axis"),
        ):
            write_config(folder, inference_config=config)
            with pytest.raises(UserError, match=told):
                ready(VideoAlign, path=str(folder), base=tiny.base)
        write_config(folder, data_config={"sample_type": "multi_pts"})
        with pytest.raises(UserError, match=r"sample_type is 'multi_pts'; only 'uniform'"):
            ready(VideoAlign, path=str(folder), base=tiny.base)
    finally:
        write_config(folder)


def test_the_grey_copy_is_for_motion_alone(video_align: Any) -> None:
    tiny, folder, _, _ = video_align
    options = {"path": str(folder), "base": tiny.base, "min_pixels": 784}

    def of(axis: str, samples: list[Sample], **more: Any) -> list[float]:
        return ready(VideoAlign, **options, of=axis, **more).score(samples)

    samples = filmed()
    greys = [
        Sample(one.prompt, video=greyscale(one.video), meta={"fps": 8.0}) for one in samples if one.video is not None
    ]
    assert of("mq", samples, grey=True) == pytest.approx(of("mq", greys), rel=1e-5)
    assert of("ta", samples, grey=True) == pytest.approx(of("ta", samples), rel=1e-6)
    total = np.sum([of("vq", samples), of("mq", greys), of("ta", samples)], axis=0)
    assert of("overall", samples, grey=True) == pytest.approx(total.tolist(), rel=1e-4, abs=1e-4)
    own = [Sample(one.prompt, video=one.video, meta=other.meta) for one, other in zip(greys, samples, strict=True)]
    assert of("mq", samples, grey=True, grey_fps=None) == pytest.approx(of("mq", own), rel=1e-5)
    pixel = np.array([[[[200, 100, 50]]]], dtype=np.uint8)
    assert greyscale(pixel).tolist() == [[[[124, 124, 124]]]]  # 59.8 + 58.7 + 5.7


def test_a_head_of_three_outputs_is_read_on_its_diagonal(video_align: Any) -> None:
    tiny, folder, adapted, _ = video_align
    file = folder / "checkpoint-11352" / "model.pth"
    state = torch.load(file, weights_only=True)
    wide = torch.randn(3, 64, generator=torch.Generator().manual_seed(8))
    torch.save(state | {"base_model.model.rm_head.weight": wide}, folder / "wide.pth")
    reward = ready(VideoAlign, path=str(folder / "wide.pth"), base=tiny.base, min_pixels=784, normalise=False, of="ta")
    (sample,) = filmed()[:1]
    assert sample.video is not None
    shown = torch.from_numpy(sized_frames(sample.video[frame_numbers(8, 4, 2.0)], 28, 784, PIXELS)).permute(0, 3, 1, 2)
    hidden = tiny.hidden(AXES_QUESTION.replace("{text_prompt}", sample.prompt.text), video=shown, model=adapted)
    assert reward.score([sample])[0] == pytest.approx(float(hidden[2] @ wide[2].double()), rel=1e-3, abs=1e-3)
    torch.save(state | {"base_model.model.rm_head.weight": wide[:2].clone()}, folder / "two.pth")
    with pytest.raises(UserError, match="a head of 2 outputs; expected 1, or 3"):
        ready(VideoAlign, path=str(folder / "two.pth"), base=tiny.base)


@pytest.mark.parametrize("total, rate, fps", [(8, 4, 2), (13, 4, 2), (5, 2, 2), (2, 8, 2), (3, 30, 2), (81, 16, 2),
                                              (1000, 1, 2), (49, 8, 2.5), (30, 30, 2), (41, 8, 2)])  # fmt: skip
def test_frames_are_even_in_number_and_evenly_spread(total: int, rate: float, fps: float) -> None:
    number = max(total / rate * fps, 4.0)
    limit = min(768, total)
    limit -= limit % 2
    number = min(number, limit)
    even = range(0, limit + 1, 2)
    number = min(even, key=lambda n: (abs(n - number), n % 4))  # a half goes to the even half
    wanted = [k * (total - 1) / (number - 1) for k in range(number)]
    found = frame_numbers(total, rate, fps)
    assert len(found) == number and found[0] == 0 and found[-1] == total - 1
    assert all(abs(a - b) <= 0.5 + 1e-3 for a, b in zip(found, wanted, strict=True))


def test_a_single_frame_is_no_video() -> None:
    with pytest.raises(ValueError, match="a video of 1 frames"):
        frame_numbers(1, 8, 2)


def test_edit_reward_pools_two_passes(tmp_path: Path) -> None:
    tiny = Tiny("qwen2_5_vl", tmp_path, ["<|Reward|>"])
    torch.manual_seed(9)
    heads = [two_layer(64), two_layer(64)]
    save_edit_reward(tiny, tmp_path, heads)
    options = {"path": str(tmp_path), "base": tiny.base, "pixels": PIXELS}
    found = {how: scored(ready(EditReward, **options, pooling=how), drawn()) for how in ("mean", "min", "sum")}
    for row, sample in enumerate(drawn()):
        shown = [pil(sample.prompt.media[0]), pil(sample.images[0])]
        texts = [one.replace("{prompt}", sample.prompt.text) for one in PASS_QUESTIONS]
        values = [applied(head, tiny.hidden(text, shown)[0])[0] for head, text in zip(heads, texts, strict=True)]
        assert found["mean"][row] == pytest.approx(sum(values) / 2, rel=1e-3, abs=1e-3)
        assert found["min"][row] == pytest.approx(min(values), rel=1e-3, abs=1e-3)
        assert found["sum"][row] == pytest.approx(sum(values), rel=1e-3, abs=1e-3)
        assert abs(values[0] - values[1]) > 1e-2
    reward = ready(EditReward, **options)
    file = tmp_path / "source.png"
    Image.fromarray(drawn()[0].prompt.media[0]).save(file)
    by_path = Sample(Prompt("p", PROMPTS[0], media=(str(file),)), images=drawn()[0].images)
    assert reward.score([by_path])[0] == pytest.approx(found["mean"][0], rel=1e-4)
    none = Sample(Prompt("n", "x"), images=drawn()[0].images)
    two = Sample(Prompt("t", "x", media=(*asked(0).media, *asked(1).media)), images=drawn()[0].images)
    scores = RewardSet({"e": (reward, 1.0)}).score([drawn()[0], none, two])
    assert (
        scores.status[:, 0].tolist() == [OK, SKIPPED, FAILED] and "2 media; expected one picture" in scores.messages[0]
    )
    assert len(reward.revision.split()[-1]) == 64


def test_edit_reward_of_one_head(tmp_path: Path) -> None:
    """Two passes under one head, or one pass; a file with other heads than `head` says is refused."""
    tiny, head = Tiny("qwen2_5_vl", tmp_path, ["<|Reward|>"]), two_layer(64)
    save_hpsv3(tiny, tmp_path, head)
    options = {"path": str(tmp_path), "base": tiny.base, "pixels": PIXELS, "file": "HPSv3.safetensors"}
    texts = (*PASS_QUESTIONS, "\nAll in all: {prompt}? <|Reward|>\n")
    for name, text in zip(("following", "quality", "overall"), texts, strict=True):
        (tmp_path / f"rubric_{name}.txt").write_text(text)
    (sample,) = drawn()[:1]
    shown = [pil(sample.prompt.media[0]), pil(sample.images[0])]
    values = [applied(head, tiny.hidden(one.replace("{prompt}", sample.prompt.text), shown)[0])[0] for one in texts]
    shared = ready(EditReward, **options, head="shared")
    assert shared.score([sample]) == pytest.approx([(values[0] + values[1]) / 2], rel=1e-3)
    single = ready(EditReward, **options, head="single")
    assert single.score([sample]) == pytest.approx([values[2]], rel=1e-3)
    assert single.revision != shared.revision
    with pytest.raises(UserError, match="holds one rm_head, and head is 'multi'"):
        ready(EditReward, **options)
    save_edit_reward(tiny, tmp_path, [head, two_layer(64), two_layer(64)])
    for how in ("multi", "single"):
        with pytest.raises(UserError, match=f"holds rm_heads with head_0, head_1, head_2, and head is '{how}'"):
            ready(EditReward, **(options | {"file": "model.safetensors", "head": how}))


def test_pictures_are_sized_as_the_reference_does() -> None:
    from qwen_vl_utils import fetch_image
    from transformers import Qwen2VLImageProcessor

    for seed, shape in enumerate([(60, 100), (130, 70), (300, 900), (33, 41), (512, 512)]):
        one = picture(seed, *shape)
        for bound in (PIXELS, 200704):
            found = sized_picture(one, 28, bound, bound)
            wanted = fetch_image({"image": Image.fromarray(one), "min_pixels": bound, "max_pixels": bound})
            assert np.array_equal(found, np.asarray(wanted))
            size = {"shortest_edge": bound, "longest_edge": bound}
            other = Qwen2VLImageProcessor(size=size)(Image.fromarray(one), return_tensors="pt")
            mine = Qwen2VLImageProcessor()(Image.fromarray(found), do_resize=False, return_tensors="pt")
            assert torch.equal(mine["image_grid_thw"], other["image_grid_thw"])
            # torchvision's bicubic and Pillow's differ by a grey level or so
            assert float((mine["pixel_values"] - other["pixel_values"]).abs().max()) < 3.1 / 255 / 0.26


def test_frames_are_sized_as_the_reference_does() -> None:
    """By the call of qwen-vl-utils: torchvision's first functional interface on uint8, antialiased."""
    from torchvision.transforms import InterpolationMode, functional

    for shape, sides in (((300, 400), (308, 392)), ((900, 700), (504, 392)), ((100, 150), (280, 392))):
        video = np.stack([np.random.default_rng(t).integers(0, 256, (*shape, 3), dtype=np.uint8) for t in range(2)])
        frames = torch.from_numpy(video).permute(0, 3, 1, 2)
        wanted = functional.resize(frames, list(sides), interpolation=InterpolationMode.BICUBIC, antialias=True)
        found = sized_frames(video, 28, 128 * 28 * 28, 200704)
        assert np.array_equal(found, wanted.permute(0, 2, 3, 1).numpy())


def test_video_patches_are_the_frames_normalised(video_align: Any) -> None:
    """Pairs of frames, squares of 2 x 2 patches, then channel, frame, row, column; mean and deviation of CLIP."""
    tiny, folder, _, _ = video_align
    reward = ready(VideoAlign, path=str(folder), base=tiny.base, min_pixels=784)
    frames = np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), dtype=np.uint8)
    found = encode(reward._processor, [Row("x", (), frames)], CPU)
    assert found["video_grid_thw"].tolist() == [[2, 2, 4]]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    row = 0
    for t in range(2):
        for square in range(2):
            for i in range(2):
                for j in range(2):
                    part = frames[2 * t : 2 * t + 2, 14 * i : 14 * i + 14, 28 * square + 14 * j :][:, :, :14]
                    flat = [(float(part[f, y, x, c]) / 255 - mean[c]) / std[c]
                            for c in range(3) for f in range(2) for y in range(14) for x in range(14)]  # fmt: skip
                    assert found["pixel_values_videos"][row].tolist() == pytest.approx(flat, abs=1e-5)
                    row += 1
    assert row == len(found["pixel_values_videos"])


def test_rows_are_padded_on_the_right(hpsv3: Any) -> None:
    tiny, folder, _ = hpsv3
    reward = ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS)
    mask = encode(reward._processor, [Row("short"), Row("a row that is longer by far")], CPU)["attention_mask"]
    assert mask[:, 0].all() and not mask[0, -1] and mask[1].all()


def test_adapters_are_merged_by_their_formula() -> None:
    g = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(shape, generator=g) for shape in ((5, 4), (2, 4), (5, 2)))
    state = {"x.base_layer.weight": weight, "x.base_layer.bias": torch.ones(5), "x.lora_A.default.weight": a,
             "x.lora_B.default.weight": b, "y.weight": weight}  # fmt: skip
    found = merged(state, 6.0, "f")
    assert set(found) == {"x.weight", "x.bias", "y.weight"} and torch.equal(found["y.weight"], weight)
    for i in range(5):
        for j in range(4):
            plain = float(weight[i, j]) + 6.0 / 2 * sum(float(b[i, k]) * float(a[k, j]) for k in range(2))
            assert float(found["x.weight"][i, j]) == pytest.approx(plain, abs=1e-5)
    rooted = merged(state, 6.0, "f", rank_root=True)["x.weight"] - weight
    torch.testing.assert_close(rooted, (found["x.weight"] - weight) * 2**0.5)
    assert (
        merged({"x.base_layer.weight": weight.bfloat16(), "x.lora_A.weight": a, "x.lora_B.weight": b}, 6.0, "f")[
            "x.weight"
        ].dtype
        == torch.bfloat16
    )
    for broken, told in (({"x.lora_B.default.weight": None}, "without lora_B"), ({"x.base_layer.weight": None}, "its weight"),
                         ({"x.lora_A.other.weight": a}, "two adapters"), ({"x.lora_A.default.weight": a.T}, "another shape"),
                         ({"x.lora_B.default.weight": b[:4]}, r"another shape: A \(2, 4\) and B \(4, 2\) for a weight \(5, 4\)"),
                         ):  # fmt: skip
        changed = {name: value for name, value in (state | broken).items() if value is not None}
        with pytest.raises(UserError, match=told):
            merged(changed, 6.0, "f")
    with pytest.raises(UserError, match="set lora_alpha"):
        merged(state, None, "f")
    with pytest.raises(UserError, match="lora_alpha '6'; expected a positive number"):
        merged(state, "6", "f")


def test_names_change_at_their_beginning_only() -> None:
    names = ("base_model.model.visual.blocks.0.x", "base_model.model.model.layers.0.visual.model.y", "model.visual.z",
             "model.language_model.norm", "lm_head.weight", "rm_head.0.weight", "visual.model.a")  # fmt: skip
    backbone, head = divided({name: torch.zeros(1) for name in names}, "f")
    assert set(backbone) == {"visual.blocks.0.x", "language_model.layers.0.visual.model.y", "visual.z",
                             "language_model.norm", "visual.model.a"}  # fmt: skip
    assert set(head) == {"0.weight"}
    for twice in ("model.norm", "model.language_model.norm"), ("rm_head.0", "base_model.model.rm_heads.0"):
        with pytest.raises(UserError, match="twice, the second time as"):
            divided({name: torch.zeros(1) for name in (*twice, "rm_head.1")}, "f")
    kept = divided({"my_lm_head.weight": torch.zeros(1), "rm_head.0": torch.zeros(1)}, "f")[0]
    assert set(kept) == {"my_lm_head.weight"}  # so it is named as unknown
    unused = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    assert divided(unused | {"rm_head.0": torch.zeros(1)}, "f")[0] == {}


def test_files_that_do_not_fit_are_one_line(hpsv3: Any, tmp_path: Path) -> None:
    tiny, folder, _ = hpsv3
    state = load_file(folder / "HPSv3.safetensors")
    (tmp_path / "rubric.txt").write_text(QUESTION)

    def refused(changed: dict[str, torch.Tensor], told: str, base: str = tiny.base) -> None:
        save_file(changed, tmp_path / "HPSv3.safetensors")
        with pytest.raises(UserError, match=told) as error:
            ready(HpsV3, path=str(tmp_path), base=base)
        assert "\n" not in str(error.value)

    without = {name: value for name, value in state.items() if not name.startswith("rm_head")}
    refused(without, "no reward head")
    refused({name: value for name, value in state.items() if name != "rm_head.3.bias"}, r"lacks weights: 3\.bias")
    refused(state | {"rm_head.7.bias": torch.zeros(2)}, r"unknown weights: 7\.bias")
    refused(state | {"model.stranger": torch.zeros(2)}, r"unknown weights: language_model\.stranger")
    refused({name: value for name, value in state.items() if name != "visual.patch_embed.proj.weight"},
            r"lacks weights: visual\.patch_embed")  # fmt: skip
    refused(state | {"rm_head.5.bias": torch.zeros(3)}, "does not fit the model")
    few = {"model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1].contiguous()}
    refused(state | few, "has 400 token embeddings.*with the reward tokens 401 tokens")
    more = {"model.embed_tokens.weight": torch.zeros(402, 64)}
    refused(state | more, "has 402 token embeddings.*with the reward tokens 401 tokens")
    refused(state, "cannot load the processor", base=str(tmp_path))
    save_file(state | {"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "HPSv3.safetensors")
    ready(HpsV3, path=str(tmp_path), base=tiny.base)  # nothing is generated, so this one is not looked at


def test_another_family_is_no_backbone(hpsv3: Any, tmp_path: Path) -> None:
    from mmrl.vlm.tiny import build_tiny_qwen3vl

    _, folder, _ = hpsv3
    build_tiny_qwen3vl(tmp_path)
    with pytest.raises(UserError, match="is a qwen3_vl; expected one of qwen2_vl, qwen2_5_vl"):
        ready(HpsV3, path=str(folder), base=str(tmp_path))


def test_a_rubric_is_asked_for_and_read_exactly(tmp_path: Path) -> None:
    for kind in (HpsV3, EditReward):
        with pytest.raises(UserError, match=r"needs the rubric .*\{prompt\}.*<\|Reward\|>.*not with mmrl") as error:
            ready(kind, path="nobody/nowhere")
        assert "\n" not in str(error.value)
    write_config(tmp_path)
    with pytest.raises(UserError, match="video_align needs the rubric"):
        ready(VideoAlign, path=str(tmp_path))
    with pytest.raises(UserError, match=r"there is no '.*own\.txt'"):
        ready(HpsV3, path=str(tmp_path), rubric=str(tmp_path / "own.txt"))
    file = tmp_path / "rubric.txt"
    for text, told in (("no place <|Reward|>", r"needs \{prompt\} once"), ("{prompt} {text_prompt} <|Reward|>", "once"),
                       ("{prompt}", "once each"), ("{prompt} <|Reward|><|Reward|>", "once each")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UserError, match=told):
            ready(HpsV3, path=str(tmp_path))
    file.write_text("{prompt}<|MQ_reward|><|VQ_reward|><|TA_reward|>")
    with pytest.raises(UserError, match="in this order"):
        ready(VideoAlign, path=str(tmp_path))
    file.write_bytes(b"\xff{prompt}<|Reward|>")
    with pytest.raises(UserError, match="no UTF-8 text"):
        ready(HpsV3, path=str(tmp_path))
    for data, told in ((b"\xef\xbb\xbf{prompt}<|Reward|>", "byte order mark"), (b"{prompt}\r\n<|Reward|>", "carriage return"),
                       (b"<|vision_start|>{prompt}<|Reward|>", r"holds the special token <\|vision_start\|>")):  # fmt: skip
        file.write_bytes(data)
        with pytest.raises(UserError, match=told) as error:
            read_rubric("r", None, str(tmp_path), "rubric.txt", ["<|Reward|>"])
        assert "\n" not in str(error.value)
    file.write_bytes(b"\n {x} {prompt} <|Reward|>\n\n")
    rubric = read_rubric("r", None, str(tmp_path), "rubric.txt", ["<|Reward|>"])
    assert rubric.about("a {text_prompt} b") == "\n {x} a {text_prompt} b <|Reward|>\n\n"


def test_a_prompt_cannot_move_the_reward(hpsv3: Any) -> None:
    tiny, folder, _ = hpsv3
    reward = ready(HpsV3, path=str(folder), base=tiny.base, pixels=PIXELS)
    bad = [
        Sample(Prompt(token, f"good {token}"), images=drawn()[0].images) for token in ("<|Reward|>", "<|image_pad|>")
    ]
    scores = RewardSet({"h": (reward, 1.0)}).score([drawn()[0], *bad])
    assert scores.status[:, 0].tolist() == [OK, FAILED, FAILED]
    assert "the prompt contains the special token <|Reward|>" in scores.messages[0]
    with pytest.raises(ValueError, match="special token"):
        reward.check_prompt(bad[1].prompt)
    with pytest.raises(ValueError, match="2 media; expected one picture"):
        EditReward().check_prompt(Prompt("t", "x", media=(*asked(0).media, *asked(1).media)))
    with pytest.raises(ValueError, match="exactly once"):
        places(torch.tensor([[1, 2, 1], [1, 2, 3]]), [1])


def test_videos_that_are_none_fail(video_align: Any) -> None:
    tiny, folder, _, _ = video_align
    reward = ready(VideoAlign, path=str(folder), base=tiny.base, min_pixels=784)
    whole = filmed()[0]
    assert whole.video is not None
    samples = [whole, Sample(asked(1), video=whole.video), Sample(asked(1), video=whole.video[:1], meta={"fps": 4}),
               Sample(asked(1), video=whole.video.astype(np.float32), meta={"fps": 4}), drawn()[0]]  # fmt: skip
    rates = [Sample(asked(1), video=whole.video, meta={"fps": one}) for one in (-4, math.nan, math.inf, "8", True)]
    scores = RewardSet({"v": (reward, 1.0)}).score([*samples, *rates])
    assert scores.status[:, 0].tolist() == [OK, FAILED, FAILED, FAILED, SKIPPED, *[FAILED] * 5]
    told = " ".join(scores.messages)
    for sample in rates:
        with pytest.raises(ValueError, match="expected a positive number of frames per second"):
            reward.score([sample])
    assert "no frame rate" in told and "a video of 1 frames" in told and "uint8 RGB video" in told
    with pytest.raises(ValueError, match="max_pixels 800 is less than min_pixels"):
        VideoAlign(max_pixels=800)
