"""Alerts: lasting conditions, reported when they begin, daily while they last, and at their end.

Active alerts are in the journal: `status` shows them, and a restart does not report them again.
"""

import json
from collections.abc import Callable

from krakenbot import log
from krakenbot.clock import Clock
from krakenbot.journal import Journal

AGAIN_S = 86400.0

Emit = Callable[[str, str], None]


class Alerts:
    """The alerts, one for each kind of condition, which its key names."""

    def __init__(self, journal: Journal, clock: Clock, emit: Emit) -> None:
        self._journal, self._clock, self._emit = journal, clock, emit

    def update(self, key: str, text: str, after_s: float = 0.0) -> None:
        """Set the alert's text; "" clears it. Report it once the condition has lasted `after_s`."""
        now, known = self._clock.now(), _read(self._journal)
        since = pending_since(self._journal)
        last_text, reported = known.get(key, ("", float("-inf")))
        if not text:
            if since.pop(key, None):
                self._journal.put(alerts_since=json.dumps(since))
            if known.pop(key, None):
                self._journal.put(warnings=json.dumps(known) if known else None)
                log.info("over: %s", last_text)
                self._emit("recovery", f"over: {last_text}")
            return
        if after_s and key not in known:
            begun, seen = since.get(key, (now, now))
            if not begun <= seen <= now or now - seen > AGAIN_S:
                begun = now  # Nobody looked for a day, or a clock was wrong.
            self._journal.put(alerts_since=json.dumps(since | {key: (begun, now)}))
            if now - begun < after_s:
                return
        if now - reported >= AGAIN_S:
            reported = now
            log.warning("%s", text)
            self._emit("warning", text)
        elif text == last_text:
            return
        self._journal.put(warnings=json.dumps(known | {key: (text, reported)}))


def active_alerts(journal: Journal) -> list[str]:
    """Return the texts of the active alerts."""
    return [text for text, _ in _read(journal).values()]


def pending_since(journal: Journal) -> dict[str, tuple[float, float]]:
    """Return when each condition that is not reported yet began, and when it was seen last."""
    known = json.loads(journal.get("alerts_since") or "{}")
    return {key: (float(begun), float(seen)) for key, (begun, seen) in known.items()}


def _read(journal: Journal) -> dict[str, tuple[str, float]]:
    known = json.loads(journal.get("warnings") or "{}")
    return {key: (str(text), float(reported)) for key, (text, reported) in known.items()}
