"""What is said of a run: the story before a violation, counts, and the line at the end."""

import re
import sys
from collections import deque
from collections.abc import Mapping

START = 1_790_000_000.0
TRACE_LINES = 60


class Violation(BaseException):
    """An invariant does not hold. Not an Exception, so that nothing under test swallows it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name, self.text = name, text


class Trace:
    """The newest lines of an episode's story; all of them are printed with `show`."""

    def __init__(self, show: bool) -> None:
        self.show = show
        self.entries: deque[tuple[float, str, str, bytes | str]] = deque(maxlen=4 * TRACE_LINES)

    def add(self, when: float, what: str, text: str, body: bytes | str = "") -> None:
        self.entries.append((when, what, text, body))
        if self.show:
            print(_line(*self.entries[-1]), file=sys.__stdout__)

    def lines(self) -> list[str]:
        return [_line(*entry) for entry in list(self.entries)[-TRACE_LINES:]]


def _line(when: float, what: str, text: str, body: bytes | str) -> str:
    shown = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    shown = re.sub(r"nonce=\d+&?|&?nonce=\d+", "", shown)
    return f"{when - START:11.2f} {what:9} {text} {shown[: 160 if what == 'got' else 400]}".rstrip()


def summary(days: float, total: Mapping[str, int], failures: int, seconds: float) -> str:
    faults = sum(count for name, count in total.items() if name.startswith("fault "))
    return (
        f"days={days:.0f} orders={total['orders executed']} "
        f"in_storms={total['orders executed in a storm']} faults={faults} "
        f"deaths={total['deaths']} violations={failures} seconds={seconds:.0f}"
    )
