"""The process that runs math-verify: one JSON line in, one JSON line out, until its input ends.

Run as a file, so it imports nothing of this project. Symbolic mathematics can hang inside C code or eat all memory, where
no exception helps: the process limits its own memory, and a timer ends it when a comparison takes too long. The timer
counts processor time, so a busy machine does not change a verdict.
"""

import json
import logging
import os
import sys
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space, where the platform can limit it."""


def compare(gold: str, answer: str | None) -> dict[str, Any]:
    """`readable`: the gold can be parsed; `equal`: the answer means the same (False without an answer)."""
    from math_verify import parse, verify

    wanted = parse(f"${gold}$", parsing_timeout=None)
    if not wanted or answer is None:
        return {"readable": bool(wanted), "equal": False}
    found = parse(f"${answer}$", parsing_timeout=None)
    return {"readable": True, "equal": bool(verify(wanted, found, timeout_seconds=None))}


def main() -> None:
    """Lines {"gold", "answer", "limit"} (seconds of processor time) -> lines {"readable", "equal"} or {"error"}."""
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [
        place for place in sys.path if os.path.abspath(place) != folder
    ]  # its modules are not top-level ones
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        import resource
        import signal
    except ImportError:  # Windows: the parent's clock is the only limit
        resource = signal = None  # type: ignore[assignment]
    logging.disable(logging.WARNING)  # it warns that it has no time limit of its own; the timer is the limit
    compare("\\pi", "3.14")  # what is imported and built at the first use is not on the timer
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if signal is not None:
            signal.setitimer(signal.ITIMER_PROF, request["limit"])
        try:
            reply = compare(request["gold"], request["answer"])
        except (Exception, MemoryError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        if signal is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
