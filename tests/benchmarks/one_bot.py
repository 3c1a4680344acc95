"""Runs N ticks of the configured live bot and prints what they cost as JSON."""

import json
import os
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.assemble import assemble
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError


def main() -> None:
    count = int(sys.argv[1])
    times: list[float] = []
    orders: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == "order":
            orders.append(len(times))
        elif event.kind == "decision":
            times.append(time.process_time())
            if len(times) > count:
                parts.clock.request_stop()

    config = configuration.load(None, os.environ, Path.cwd())
    parts = assemble(config, live=True, on_event=watch)
    with suppress(StopRequestedError):
        parts.bot.run()
    costs = [b - a for a, b in pairwise(times)]
    idle = sorted(cost for index, cost in enumerate(costs) if index + 1 not in orders)
    print(
        json.dumps(
            {
                "idle_ms": idle[len(idle) // 2] * 1000,
                "all_ms": sum(costs) / len(costs) * 1000,
                "requests": 3.0,
            }
        )
    )


if __name__ == "__main__":
    main()
