"""Runs N ticks of the configured live bot and prints what they cost as JSON."""

import json
import os
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from krakenbot.assemble import assemble
from krakenbot.bot import Event
from krakenbot.clock import StopRequestedError
from krakenbot.config_reader import load
from krakenbot.kraken.transport import UrllibTransport


def main() -> None:
    count = int(sys.argv[1])
    marks: list[tuple[float, int]] = []  # CPU and requests so far, at each decision.
    orders: set[int] = set()
    requests = 0
    send = UrllibTransport.send

    def counted(self: UrllibTransport, *request: object) -> tuple[int, bytes]:
        nonlocal requests
        requests += 1
        return send(self, *request)  # type: ignore[arg-type]

    def watch(event: Event) -> None:
        if event.kind == "order":
            orders.add(len(marks))
        elif event.kind == "decision":
            marks.append((time.process_time(), requests))
            if len(marks) > count:
                parts.clock.request_stop()

    UrllibTransport.send = counted  # type: ignore[method-assign]
    config = load(None, os.environ, Path.cwd())
    parts = assemble(config, live=True, on_event=watch)
    with suppress(StopRequestedError):
        parts.bot.run()
    ticks = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
    busy = sorted(cost for number, cost in enumerate(ticks, 1) if number in orders)
    idle = sorted(cost for number, cost in enumerate(ticks, 1) if number not in orders)
    cpu, sent = busy[len(busy) // 2]
    idle_ms = idle[len(idle) // 2][0] * 1000
    print(json.dumps({"order_ms": cpu * 1000, "requests": sent, "idle_ms": idle_ms}))


if __name__ == "__main__":
    main()
