"""The built-in rewards, built by name as a config does."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from mmrl.catalogue import about, catalogue
from mmrl.cli import app
from mmrl.components import build, names, resolve, table
from mmrl.errors import UserError
from mmrl.options import complaints
from mmrl.reward import Reward, RewardSet
from mmrl.rollout import FAILED, OK, SKIPPED, Prompt, Sample

FLAT = np.full((64, 64, 3), 90, dtype=np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def score(spec: dict[str, Any], samples: list[Sample], base: Path | None = None) -> Any:
    return RewardSet({"r": (build("reward", spec, base), 1.0)}).score(samples)


def shown(*images: Any, target: Any = None, name: str = "p") -> Sample:
    return Sample(Prompt(name, name, target=target), images=images)


def test_every_reward_in_the_table_is_a_reward() -> None:
    for name in table("reward"):
        assert issubclass(resolve("reward", name), Reward)


def test_jpeg_is_kilobytes_over_500() -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, format="JPEG", quality=95)
    expected = len(buffer.getvalue()) / 1000 / 500
    small = score({"name": "jpeg_compressibility"}, [shown(NOISE), shown(FLAT), shown(NOISE, FLAT)]).values[:, 0]
    large = score({"name": "jpeg_incompressibility"}, [shown(NOISE), shown(FLAT), shown(NOISE, FLAT)]).values[:, 0]
    assert small[0] == pytest.approx(-expected) and small[1] > small[0]
    assert small[2] == pytest.approx((small[0] + small[1]) / 2)
    assert (large == -small).all()


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (NOISE / 255.0, "float64 array"),
        (NOISE[..., 0], r"array \(64, 64\)"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"\(4, 4, 4\)"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("name", ["jpeg_compressibility", "shapes"])
def test_a_broken_image_fails_alone(name: str, image: Any, got: str) -> None:
    good = build("examples", {"name": "shapes"}).open(0).example(0)
    scores = score({"name": name}, [good, Sample(good.prompt, images=(image,)), good])
    assert scores.status.ravel().tolist() == [OK, FAILED, OK]
    assert re.search(f"expected a uint8 RGB image.*{got}", scores.messages[0])


def test_a_sample_without_image_is_skipped() -> None:
    for name in ("jpeg_compressibility", "shapes"):
        assert score({"name": name}, [Sample(Prompt("p", "p"), text="hello")]).status.tolist() == [[SKIPPED]]


def test_shapes_rewards_are_perfect_on_drawings_and_not_on_others() -> None:
    drawings = build("examples", {"name": "shapes"}).open(0)
    right = [drawings.example(index) for index in range(30)]
    wrong = [Sample(a.prompt, images=b.images) for a, b in itertools.pairwise(right) if a.prompt != b.prompt]
    rng = np.random.default_rng(0)
    noisy = [
        Sample(s.prompt, images=(np.clip(s.images[0] + rng.normal(0, 25, (24, 24, 3)), 0, 255).astype(np.uint8),))
        for s in right
    ]
    for mode in ("dense", "exact", "strict"):
        assert (score({"name": "shapes", "mode": mode}, right).values == 1).all()
        assert score({"name": "shapes", "mode": mode}, wrong).values.mean() < 0.7
    assert np.abs(score({"name": "shapes", "mode": "clean"}, right).values).max() < 1e-3
    assert score({"name": "shapes", "mode": "clean"}, noisy).values.max() < -0.1
    assert score({"name": "shapes", "mode": "exact"}, noisy).values.mean() > 0.9
    assert score({"name": "shapes", "mode": "exact", "tolerance": 0.1}, noisy).values.mean() < 0.1


def test_shapes_without_a_target_names_the_prompt() -> None:
    image = np.zeros((24, 24, 3), dtype=np.uint8)
    for mode in ("dense", "exact", "strict"):
        scores = score({"name": "shapes", "mode": mode}, [shown(image, name="mine:7")])
        assert "prompt 'mine:7' has no target" in scores.messages[0]
    assert score({"name": "shapes", "mode": "clean"}, [shown(image)]).status.tolist() == [[OK]]


@pytest.mark.parametrize(
    "target", ["a cat", {"kind": "count"}, {"kind": "count", "color": "red", "shape": "cat", "count": 1}, 3]
)
def test_shapes_with_a_foreign_target_fails(target: Any) -> None:
    image = np.zeros((24, 24, 3), dtype=np.uint8)
    assert "no target of the shapes world" in score({"name": "shapes"}, [shown(image, target=target)]).messages[0]


def test_shapes_with_a_picture_of_another_size_fails() -> None:
    assert "expected one 24x24 picture, got 64x64" in score({"name": "shapes"}, [shown(FLAT)]).messages[0]
    small = FLAT[:24, :24]
    assert "got 24x24, 24x24" in score({"name": "shapes"}, [shown(small, small)]).messages[0]


def test_shapes_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="has no tolerance to set"):
        build("reward", {"name": "shapes", "mode": "strict", "tolerance": 0.3})
    with pytest.raises(ValidationError, match="'dense', 'exact', 'strict' or 'clean'"):
        build("reward", {"name": "shapes", "mode": "denze"})


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "def brevity(samples, limit=10, scale=1.0):\n"
        "    return [None if s.text is None else min(len(s.text), limit) * scale for s in samples]\n"
        "def needs(samples, *, target): return [target] * len(samples)\n"
        "def free(samples, **options): return [options['a']] * len(samples)\n"
        "def nothing(): return []\n"
        "async def later(samples): return []\n"
        "class Plain:\n    def __init__(self, samples): pass\n"
        "def one(samples): return samples[0].meta['absent']\n"
    )
    return tmp_path


def test_a_plain_function_from_a_file_with_options(mine: Path) -> None:
    samples = [Sample(Prompt("p", "p"), text="ab"), Sample(Prompt("p", "p")), Sample(Prompt("p", "p"), text="x" * 50)]
    scores = score({"name": "mine.py:brevity", "scale": 0.5}, samples, mine)
    assert scores.values[[0, 2], 0].tolist() == [1.0, 5.0] and scores.status[1, 0] == SKIPPED
    assert score({"name": "mine.py:free", "a": 4}, samples, mine).values.tolist() == [[4.0]] * 3


def test_the_function_entry_takes_a_path(mine: Path) -> None:
    path = f"{mine}/mine.py:brevity"
    reward = build("reward", {"name": "function", "function": path, "options": {"limit": 1}})
    assert reward.score([Sample(Prompt("p", "p"), text="abc")]) == [1.0]
    with pytest.raises((ValidationError, UserError), match=r"did you mean 'brevity'\?"):
        build("reward", {"name": "function", "function": f"{mine}/mine.py:brevty"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "mine.py:brevity", "limt": 3},
            r"no option 'limt'; did you mean 'limit'\? \(accepted: limit, scale\)",
        ),
        ({"name": "mine.py:brevity", "samples": 3}, r"no option 'samples'"),
        ({"name": "mine.py:free", "a": 1, "samples": 3}, r"no option 'samples'"),
        ({"name": "mine.py:one", "a": 3}, r"accepted: none"),
        ({"name": "mine.py:needs"}, "needs the option 'target'"),
        ({"name": "mine.py:nothing"}, "takes no samples; expected a plain function"),
        ({"name": "mine.py:later"}, "is async"),
        ({"name": "mine.py:Plain"}, "is a class"),
    ],
)
def test_functions_that_cannot_be_called_are_refused_at_config_time(
    mine: Path, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build("reward", spec, mine)


TYPED = """
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from nowhere import Odd


def typed(samples: list[Odd], channel: int = 0, free=1, mode: Literal["red", "green"] = "red",
          part: Annotated[float, Field(le=1)] = 0.5, odd: Odd = None, files: tuple[Path, ...] = (), **more: float):
    assert type(channel) is int and all(isinstance(one, Path) for one in files)
    return [channel + len(files) for _ in samples]


def placed(samples, k, /):
    return []


def late(samples):
    yield 1.0
"""


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({"channel": "red"}, "channel", "got 'red'; input should be a valid integer"),
        ({"mode": "rad"}, "mode", "got 'rad'; input should be 'red' or 'green'; did you mean 'red'?"),
        ({"part": 2}, "part", "got 2; input should be less than or equal to 1"),
        ({"files": ["a", 3]}, "files.1", "got 3; input is not a valid path"),
        ({"extra": "x"}, "extra", "got 'x'; input should be a valid number"),
    ],
)
def test_an_option_of_a_function_has_the_type_of_its_parameter(
    tmp_path: Path, options: dict[str, Any], place: str, message: str
) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    with pytest.raises(ValidationError) as caught:
        build("reward", {"name": "typed.py:typed", **options}, tmp_path)
    (found,) = complaints(caught.value, BaseModel, options)
    assert ".".join(map(str, found.loc)) == place and found.text.startswith(message)


def test_options_are_converted_and_those_without_a_type_are_as_given(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    spec = {"name": "typed.py:typed", "channel": "2", "free": "red", "odd": 4, "files": ["a"], "extra": 1}
    assert score(spec, [Sample(Prompt("p", "p"))], tmp_path).values.tolist() == [[3.0]]
    written = build("reward", spec, tmp_path).written_options()
    assert written == {key: value for key, value in spec.items() if key != "name"}
    for name, message in (("placed", "takes 'k' by its place alone"), ("late", "late yields its scores one by one")):
        with pytest.raises(ValidationError, match=message):
            build("reward", {"name": f"typed.py:{name}"}, tmp_path)


def test_a_function_that_raises_names_its_own_line(mine: Path) -> None:
    (message,) = score({"name": "mine.py:one"}, [Sample(Prompt("p7", "p"))], mine).messages
    assert message == f"reward 'r' raised KeyError: 'absent' on sample 0 of prompt 'p7' ({mine}/mine.py:9)"


def test_a_reward_of_an_installed_package_is_named_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brief_pkg.py").write_text("def brevity(samples, unit=1.0):\n    return [unit for _ in samples]\n")
    info = tmp_path / "brief_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brief-pkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl.reward]\nbrevity = brief_pkg:brevity\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    table.cache_clear()
    try:
        assert score({"name": "brevity", "unit": 3.0}, [Sample(Prompt("p", "p"))]).values.tolist() == [[3.0]]
    finally:
        table.cache_clear()


def test_entry_points_may_have_dots_and_extras_and_say_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_pkg.py").write_text(
        "class Box:\n    @staticmethod\n    def low(samples):\n        return [2 for _ in samples]\n"
    )
    for package, text in (
        ("shop", "boxed = shop_pkg:Box.low [more]\nbare = shop_pkg\n"),
        ("rival", ""),
    ):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mmrl.reward]\n{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    table.cache_clear()
    try:
        assert score({"name": "boxed"}, [Sample(Prompt("p", "p"))]).values.tolist() == [[2.0]]
        with pytest.raises(UserError, match="'bare' is the module shop_pkg; say what in it is meant"):
            build("reward", {"name": "bare"})
        (tmp_path / "rival-1.0.dist-info" / "entry_points.txt").write_text("[mmrl.reward]\nboxed = shop_pkg:Box\n")
        table.cache_clear()
        importlib.invalidate_caches()
        with pytest.raises(
            UserError, match=r"'boxed' = \S+( \[more\])? of package \w+ hides that of package \w+; rename"
        ):
            build("reward", {"name": "exact"})
    finally:
        table.cache_clear()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)", "raised while it was loaded: called sys.exit(0)"),
        ("def f(:", "raised while it was loaded: SyntaxError"),
        ("from mmrl.reward import Nope", "raised while it was loaded: ImportError: cannot import name 'Nope'"),
        (
            "from mmrl.reward import Reward\nclass Warm(Reward):\n    need = ('image',)",
            "class Warm: an option needs a type, as in need: tuple = ('image',); or did you mean 'needs'?",
        ),
        (
            "from mmrl.reward import Reward\nclass Warm(Reward):\n    rang = (0, 1)\n    range = (0, 1)",
            "class Warm: an option needs a type, as in rang: tuple = (0, 1); or did you mean 'range'?",
        ),
        (
            "from mmrl.reward import Reward\nclass Warm(Reward):\n    zzz = 1",
            "class Warm: an option needs a type, as in zzz: int = 1 (",
        ),
        (
            "from mmrl.reward import Reward\nclass Warm(Reward):\n    limit = 0.3",
            "class Warm: an option needs a type, as in limit: float = 0.3 (",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    module = f"m{abs(hash(text))}"
    (tmp_path / f"{module}.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (f"{module}.py:Warm", f"{module}:Warm"):
        with pytest.raises(UserError) as caught:
            build("reward", {"name": name}, tmp_path)
        assert message in str(caught.value) and "\n" not in str(caught.value) and module in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("needs = 'image'", "class Odd has needs = 'image'; expected a tuple, such as ('image',)"),
        ("scope = 'groupwize'", "class Odd has scope = 'groupwize'; expected one of pointwise, groupwise, pairwise"),
        ("range = (0.0,)", "class Odd has range = (0.0,); expected (smallest, largest)"),
        ("range = ('0', '1')", "class Odd has range = ('0', '1'); expected"),
        ("range = (1, 0)", "class Odd has range = (1, 0), from 1 to 0; expected"),
        ("range = None", "class Odd has range = None; expected"),
        ("higher_is_better = 'no'", "class Odd has higher_is_better = 'no'; expected True or False"),
        ("revision = 2", "class Odd has revision = 2; expected a text"),
    ],
)
def test_what_a_class_says_of_itself_is_checked(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "odd.py").write_text(
        f"from mmrl.reward import Reward\nclass Odd(Reward):\n    {line}\n    def score(self, samples):\n        return []\n"
    )
    with pytest.raises(ValidationError, match=re.escape(message)):
        build("reward", {"name": "odd.py:Odd"}, tmp_path)


def test_the_list_says_what_rewards_look_at_and_where_they_come_from() -> None:
    rows = {row["name"]: row for row in catalogue("reward")["reward"]}
    pairs, pick = rows["shape_pairs"], rows["pick_score"]
    assert (pairs["scope"], pairs["needs"], pairs["range"], pairs["better"]) == (
        "pairwise", "image, target", "[0, 1]", "higher",
    )  # fmt: skip
    assert (pick["scope"], pick["checkpoint"]) == ("pointwise", "yuvalkirstain/PickScore_v1")


@pytest.mark.parametrize("name", names("reward"))
def test_every_option_of_a_reward_says_what_it_is(name: str) -> None:
    assert not [row["option"] for row in about("reward", name)["options"] if not row["what"]]


def test_a_list_leaves_options_to_the_view_of_one() -> None:
    said = CliRunner().invoke(app, ["list", "rewards"]).output
    assert "pick_score" in said and "hub_revision" not in said and "preference.clip" not in said
    assert said.endswith("(both of all: --json)\n")
    assert "hub_revision" in CliRunner().invoke(app, ["list", "rewards", "pick_score"]).output
    row = json.loads(CliRunner().invoke(app, ["list", "rewards", "--json"]).output)["reward"][0]
    assert {"class", "options"} <= row.keys()
    assert "--json" not in CliRunner().invoke(app, ["list", "methods"]).output
