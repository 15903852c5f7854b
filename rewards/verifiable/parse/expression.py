r"""The value of a small arithmetic expression, in LaTeX or plain: + - * / ^, brackets, \frac, \sqrt, \pi, percent.

No variables, no functions, no `eval`; whatever else there is makes the expression unreadable.
"""

from __future__ import annotations

import math
import re

from mmrl.rewards.verifiable.parse.numbers import plain

_TOKEN = re.compile(
    r"\s*(?:(\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+\.?\d*|\.\d+)|\\(frac|dfrac|tfrac|sqrt|pi|div)|(π|√|\*\*|[-+*/^×÷(){}\[\]%]))"
)
_LONGEST = 300
_BRACKETS = {"(": ")", "{": "}", "[": "]"}


class _Unreadable(Exception):
    pass


def evaluate(text: str) -> float | None:
    """The value as float64; None if `text` is no expression of this kind, is too long or has no finite real value."""
    if len(text) > _LONGEST:
        return None
    try:
        reader = _Reader(_tokens(plain(text).removesuffix(".")))
        value = reader.sum()
        reader.end()
    except (_Unreadable, ZeroDivisionError, OverflowError, RecursionError):
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _Unreadable
        tokens.append(next(group for group in match.groups() if group is not None))
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent: sum of products of powers, with juxtaposition (2\\pi) as a product."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if wanted and token not in wanted:
            raise _Unreadable
        self.at += 1
        return token

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise _Unreadable

    def sum(self) -> float:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> float:
        value = self.signed()
        while True:
            token = self.peek()
            if token in ("*", "×"):
                self.take()
                value *= self.signed()
            elif token in ("/", "÷", "div"):
                self.take()
                value /= self.signed()
            elif token in ("(", "{", "pi", "π", "sqrt", "√", "frac", "dfrac", "tfrac"):
                value *= self.power()
            else:
                return value

    def signed(self) -> float:
        if self.peek() in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def power(self) -> float:
        base = self.atom()
        while self.peek() == "%":
            self.take()
            base /= 100
        if self.peek() in ("^", "**"):
            self.take()
            exponent = self.signed()
            base = self.real(base, exponent)
        return base

    @staticmethod
    def real(base: float, exponent: float) -> float:
        if base < 0 and not exponent.is_integer():
            raise _Unreadable
        return base**exponent

    def atom(self) -> float:
        token = self.take()
        if token in _BRACKETS:
            value = self.sum()
            self.take(_BRACKETS[token])
            return value
        if token in ("frac", "dfrac", "tfrac"):
            return self.argument() / self.argument()
        if token in ("sqrt", "√"):
            return self.root()
        if token in ("pi", "π"):
            return math.pi
        if token[:1].isdigit() or token[:1] == ".":
            return float(token.replace(",", ""))
        raise _Unreadable

    def root(self) -> float:
        degree = 2.0
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        return self.real(self.argument(), 1 / degree)

    def argument(self) -> float:
        """What follows \\frac or \\sqrt: braces, or one digit (\\frac12 has two)."""
        token = self.peek()
        if token == "{" or token == "(":
            return self.atom()
        if not token.isdigit():
            raise _Unreadable
        self.tokens[self.at : self.at + 1] = list(token)
        return float(self.take())
