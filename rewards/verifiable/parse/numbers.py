r"""Numbers in text: signs, thousands, decimals, fractions, mixed numbers, powers of ten, percent, and a unit behind.

A comma separates thousands only in \d{1,3}(,\d{3})+; anything else with a comma is two numbers. Units are read and never
converted. LaTeX and plain writing mean the same, and so do all minus signs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from mmrl.rewards.verifiable.parse.region import Parsed, answer_text

_NAMES = (
    "mm millimeter millimeters millimetre millimetres", "cm centimeter centimeters centimetre centimetres",
    "m meter meters metre metres", "km kilometer kilometers kilometre kilometres", "in inch inches", "ft foot feet",
    "yd yard yards", "mi mile miles", "mg milligram milligrams", "g gram grams", "kg kilogram kilograms",
    "lb lbs pound pounds", "oz ounce ounces", "ml mL milliliter milliliters millilitre millilitres",
    "l L liter liters litre litres", "ms millisecond milliseconds", "s sec secs second seconds",
    "min mins minute minutes", "h hr hrs hour hours", "day days", "week weeks", "month months", "year years",
    "° degree degrees deg", "°C", "°F", "$ dollar dollars USD", "€ euro euros EUR", "£", "N", "J", "W", "V", "Hz", "Pa",
    "px pixel pixels", "unit units",
)  # fmt: skip
UNITS = {name: names.split()[0] for names in _NAMES for name in names.split()}
"""Every way to write a unit -> the unit."""

_LONGEST = 2_000
_UNIT = "|".join(sorted((re.escape(name) for name in UNITS if name != "in"), key=len, reverse=True))
_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_INT}(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.^/\\+*]) (?<!\w-) (?<!\d/\s) (?<!\d\s-\s)  # not inside a word, a formula, a date or a range
    (?P<sign>(?<![\w)])[-+])? (?P<money>[$€£]\s?)?
    (?: 10\s?\^\s?\{{?(?P<power>[-+]?\d+)\}}?
      | (?P<whole>\d+)\s+(?P<mixed_top>\d+)\s?/\s?(?P<mixed_bottom>\d+)
      | (?P<top>{_DECIMAL})\s?/\s?(?P<bottom>{_DECIMAL})
      | (?P<decimal>{_DECIMAL}) (?: [eE](?P<exponent>[-+]?\d+) | \s?[×*x]\s?10\s?\^\s?\{{?(?P<times>[-+]?\d+)\}}? )?
    )
    (?!\d) (?!\s?/\s?\d) (?!\s?[-–—]\s?\d)
    (?: \s?(?P<percent>%) | \s?(?P<unit>{_UNIT})(?!\w) | \s?(?P<inch>in)(?=\s*(?:[.,;)]|$)) )?
    (?!\w|\^|\*|\.\d)
    """,
    re.VERBOSE,
)
_BEFORE = re.compile(r"(?:answer\s*(?:is|:|=)|=)[\s:*$]*$", re.IGNORECASE)
_SIGN = re.compile(r"^([-+])\s+")
_FRACTION = re.compile(r"(\d?)\s*\\[dt]?frac\s*(?:\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}|\s*(\d)\s*(\d))")
_PLAIN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?<!\\)\$([^$\n]*)(?<!\\)\$"), r" \1 "),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\*\*(?=\S)([^*\n]+)\*\*"), r"\1"),
    (re.compile("\u2044"), "/"),
    (re.compile(r"[\u2212\uFE63\uFF0D]"), "-"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,!;:]"), ""),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"\\times|\\cdot|·"), "×"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degree"), "°"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r" \1 "),
)


@dataclass(frozen=True)
class Number:
    """A number as it is written: 50% is value 50 with `percent`, and "12 inches" is 12 with the unit "in"."""

    value: float
    percent: bool = False
    unit: str = ""
    integer: bool = field(default=False, compare=False)

    @property
    def share(self) -> float:
        """The value, percent divided by 100."""
        return self.value / 100 if self.percent else self.value


def plain(text: str) -> str:
    r"""`text` without LaTeX where a plain way of writing exists: \frac{1}{2} is 1/2, 3{,}000 is 3,000, 90^\circ is 90°."""
    text = " ".join(text.split())
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return " ".join(_FRACTION.sub(_slash, text).split())


def read_number(text: str) -> Number | None:
    """The number that the whole of `text` is, with a full stop or brackets around it at most; None if it is no number."""
    if len(text) > _LONGEST:
        return None
    said = plain(text).removesuffix(".").strip()
    if said[:1] + said[-1:] in ("()", "[]", "{}"):
        said = said[1:-1].strip()
    match = _NUMBER.fullmatch(_SIGN.sub(r"\1", said))
    return None if match is None else _value(match)


def find_numbers(text: str) -> list[Number]:
    """Every number in the last 2000 characters of `text`, in order. Formulas, dates, ranges and digits inside words are none."""
    found = (_value(match) for match in _NUMBER.finditer(plain(text[-_LONGEST:])))
    return [number for number in found if number is not None]


def parse_number(text: str, opened: bool = False, repair_tags: bool = False) -> Parsed[Number]:
    """The number that a text answers, by the first rule that gives one.

    whole: the region is a number; phrase: the last one behind "answer is", "answer:" or "="; only: all numbers in the
    region are the same one.
    """
    region = answer_text(text, opened, repair_tags)
    if region.value is None:
        return region.found(None)
    whole = read_number(region.value)
    if whole is not None:
        return region.found(whole, "whole")
    said = plain(region.value[-_LONGEST:])
    numbers = [(match, number) for match in _NUMBER.finditer(said) if (number := _value(match)) is not None]
    behind = [pair for pair in numbers if _BEFORE.search(said, max(0, pair[0].start() - 40), pair[0].start())]
    if behind:
        return region.found(behind[-1][1], "phrase", behind[-1][0][0])
    if len({number for _, number in numbers}) == 1:
        return region.found(numbers[0][1], "only", numbers[0][0][0])
    return region.found(None)


def same_number(answer: Number, gold: Number, relative: float = 1e-6, absolute: float = 1e-9) -> bool:
    """Equal within max(absolute, relative * |gold|); two whole numbers only if they are the same.

    Percent is a share (50% = 0.5). Two different units make a difference, a missing one does not.
    """
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False
    if answer.integer and gold.integer and answer.percent == gold.percent:
        return answer.value == gold.value
    return abs(answer.share - gold.share) <= max(absolute, relative * abs(gold.share))


def gold_number(value: Any) -> Number:
    """A target as a number: an int, a float or text. Raises ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return Number(float(value), integer=isinstance(value, int))
    number = read_number(value) if isinstance(value, str) else None
    if number is None:
        raise ValueError(f"the target is {value!r}; expected a number")
    return number


def _slash(match: re.Match[str]) -> str:
    top, bottom = match[2] or match[4], match[3] or match[5]
    return f"{match[1]} {top}/{bottom}" if match[1] else f"{top}/{bottom}"


def _value(match: re.Match[str]) -> Number | None:
    """None for what has no finite value (1/0, 1e999)."""
    part = {name: text.replace(",", "") for name, text in match.groupdict().items() if text}
    try:
        if "power" in part:
            value = 10.0 ** int(part["power"])
        elif "whole" in part:
            value = int(part["whole"]) + int(part["mixed_top"]) / int(part["mixed_bottom"])
        elif "top" in part:
            value = float(part["top"]) / float(part["bottom"])
        else:
            value = float(part["decimal"]) * 10.0 ** int(part.get("exponent") or part.get("times") or 0)
    except (ZeroDivisionError, OverflowError, ValueError):
        return None
    if not math.isfinite(value):
        return None
    sign = -1.0 if part.get("sign") == "-" else 1.0
    unit = UNITS[(part.get("unit") or part.get("inch") or part.get("money") or "unit").strip()]
    integer = "decimal" in part and part["decimal"].isdigit() and not part.keys() & {"exponent", "times"}
    return Number(sign * value, "percent" in part, "" if unit == "unit" else unit, integer)
