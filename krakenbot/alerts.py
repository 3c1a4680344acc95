"""What a person should know for as long as it holds: said once, again daily, and when it is over.

What holds is kept in the journal, so that `status` shows it and a restart does not say it anew.
"""

import json
from collections.abc import Callable

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.journal import Journal

AGAIN_S = 86400.0

Emit = Callable[[str, str], None]


class Alerts:
    """Each alert has a key of its own: of one kind of trouble there is one."""

    def __init__(self, journal: Journal, clock: Clock, emit: Emit) -> None:
        self._journal, self._clock, self._emit = journal, clock, emit
        self._since: dict[str, float] = {}

    def update(self, key: str, text: str, after_s: float = 0.0) -> None:
        """Note that this holds now, or without a text that it does not; tell it after `after_s`."""
        now, known = self._clock.now(), _read(self._journal)
        told_text, told = known.get(key, ("", float("-inf")))
        if not text:
            self._since.pop(key, None)
            if known.pop(key, None):
                self._journal.put(warnings=json.dumps(known) if known else None)
                log.info("over: %s", told_text)
                self._emit("recovery", f"over: {told_text}")
            return
        since = self._since.setdefault(key, self._clock.monotonic())
        if key not in known and self._clock.monotonic() - since < after_s:
            return
        if now - told >= AGAIN_S:
            told = now
            log.warning("%s", text)
            self._emit("warning", text)
        elif text == told_text:
            return
        self._journal.put(warnings=json.dumps(known | {key: (text, told)}))


def active_alerts(journal: Journal) -> list[str]:
    """Return the texts of what holds."""
    return [text for text, _ in _read(journal).values()]


def _read(journal: Journal) -> dict[str, tuple[str, float]]:
    known = json.loads(journal.get("warnings") or "{}")
    return {key: (str(text), float(told)) for key, (text, told) in known.items()}
