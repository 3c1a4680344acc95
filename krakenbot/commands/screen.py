"""What a terminal shows while the bot runs: a line for each candle and each order."""

import sys
from collections.abc import Mapping
from decimal import Decimal

from krakenbot import log
from krakenbot.bot import Event
from krakenbot.commands import shows_color
from krakenbot.format import amount, moment, price, volume

HEADER = "time (UTC)       price    average  decision                      held     equity"
_COLORS = {"fill": "32", "halt": "31", "warning": "33", "refusal": "33", "objection": "33"}


class Screen:
    """Receives the bot's events and shows them; in a pipe only halts, warnings and refusals."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._decimals: int | None = None
        self._quote = ""

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self._decimals = int(event.values["pair_decimals"])
            self._quote = event.values["quote"]
            if self._is_terminal:
                self._print(HEADER)
        elif event.kind == "decision" and self._is_terminal:
            self._print(self._row(event.text, event.values))
        elif event.kind in _COLORS and (self._is_terminal or event.kind != "fill"):
            words = event.text if event.kind == "fill" else f"{event.kind}: {event.text}"
            self._print(f"  {words}", _COLORS[event.kind])

    def _row(self, text: str, values: Mapping[str, str]) -> str:
        """Return the line of a decision: 80 columns, for which only the words are cut."""
        at, held = moment(int(values["candle"]), "%m-%d %H:%M"), volume(Decimal(values["held"]))
        figures = [price(Decimal(values[key]), self._decimals) for key in ("price", "average")]
        left = f"{at} {figures[0]:>10} {figures[1]:>10}  "
        right = f" {held:>7} {amount(Decimal(values['equity']), self._quote):>10}"
        room = max(0, 80 - len(left + right))
        return f"{left}{text[:room]:{room}}{right}"

    def _print(self, text: str, color: str = "") -> None:
        """Print one line, cut to 80 columns at a terminal. A failing write stops nothing."""
        shown = log.clean(text)[: 80 if self._is_terminal else None]
        if color and shows_color(sys.stdout):
            shown = f"\x1b[{color}m{shown}\x1b[0m"
        log.put(sys.stdout, f"{shown}\n")
