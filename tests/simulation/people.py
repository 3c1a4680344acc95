"""Who starts the program again, looks at its halts, changes its settings, or trades beside it."""

import argparse
import contextlib
import importlib
import os
import shutil
import traceback
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from krakenbot.commands import COMMANDS, exit_code
from krakenbot.errors import RefusedError
from krakenbot.model import Side
from tests.simulation.invariants import QUOTE
from tests.simulation.journals import make_older, spoil_page
from tests.simulation.machine import Death
from tests.simulation.report import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

# Of each pair the sizes in use, and the names that it has.
SIZES = {
    "XXBTZUSD": (Decimal("0.01"), Decimal("0.005"), Decimal("0.02")),
    "XETHZUSD": (Decimal("0.3"), Decimal("0.15"), Decimal("0.6")),
}
NAMES = {
    "XXBTZUSD": ("XBTUSD", "XXBTZUSD", "BTC/USD", "BTCUSD"),
    "XETHZUSD": ("ETHUSD", "XETHZUSD", "ETH/USD"),
}
KEYS = ("SANDBOX-KEY", "SANDBOX-KEY-2", "SANDBOX-KEY-3")
CHANGES = {
    "LEVERAGE": ("0", "2", "3"),
    "REVERSAL": ("two-step", "one-order"),
    "STRATEGY_LENGTH": ("2", "3", "5"),
    "ENTRY": ("now", "next-turn"),
    "INTERVAL": ("1", "5"),
}


class Ended(Exception):
    """The program ended for a reason of its own. `code` is its exit code."""

    def __init__(self, error: Exception, code: int) -> None:
        super().__init__(str(error))
        self.code = code


class People:
    """The supervisor and everybody else around one bot."""

    def __init__(self, world: "World", folder: Path) -> None:
        self.world, self.folder = world, folder
        self.random = Random(f"{world.seed} people")
        self.next_loss = ""  # What happens to the journal before the next start.

    def command(self, name: str, *wanted: str) -> None:
        """Run a command of the program on the machine. Raises Ended with its exit code, or Death.

        Of the words wanted, those that the command does not know are left out.
        """
        world = self.world
        world.note("start", " ".join((name, *wanted)))
        if name != "run" or "--adopt" in wanted:  # Somebody has looked.
            world.truth.look_at_all()
        module = importlib.import_module(f"krakenbot.commands.{COMMANDS[name][0]}")
        parser = argparse.ArgumentParser()
        parser.add_argument("--config")
        parser.set_defaults(command=name)
        module.add_arguments(parser)
        arguments, _ = parser.parse_known_args(wanted)
        world.is_dead, world.is_alive, world.born = False, False, world.time
        for key in [key for key in os.environ if key.startswith("KRAKEN")]:
            del os.environ[key]
        os.environ.update(world.environ())
        try:
            module.run(arguments)
        except Exception as error:
            code = exit_code(error, name)
            text = "".join(traceback.format_exception(error)[-6:])
            world.expect(code != 70, "no defect", f"exit 70: {text}")
            world.truth.verify()
            raise Ended(error, code) from error
        else:
            world.truth.verify()
        finally:
            world.is_dead = world.is_alive = False
            world.parts = None
            world.close_reader()
            world.machine.end_process()

    def live(self) -> None:
        """Start the program and do what a supervisor and its person do when it ends."""
        world, chance = self.world, self.random.random
        self.change_journal()
        if chance() < 0.15 and not world.setting.alone and world.storms.strikes("change"):
            self._change()
        try:
            self.command("run", "--live", "--accept-costs")
        except Death:
            self._died()
            world.pass_time(self.random.choice((0.5, 3, 30, 300)) * chance())
        except Ended as error:
            world.counts[f"exit {error.code}"] += 1
            if error.code == 0:
                world.pass_time(self.random.choice((1, 60, 1800)) * chance())
            elif error.code == 75:
                world.pass_time(5)
            elif error.code == 78:
                reasons = world.disk_failed_at >= world.born or world.seen("delisted")
                reasons = reasons or world.changed("leverage") or world.seen("rules")
                world.expect(reasons, "true reason", f"78 said {error}")
                world.pass_time(60)
            else:
                self._look_at_halt(error)

    def _died(self) -> None:
        world = self.world
        world.note("death", "")
        world.counts["deaths"] += 1
        if world.storms.loses_power:
            world.storms.loses_power = False
            world.close_reader()
            torn = self.random.randbytes(self.random.choice((0, 100, 4120, 9000)))
            lost = world.machine.lose_power(torn)
            world.note("power", f"lost: {lost}")
            world.truth.recount()
        world.storms.die_soon()

    def _look_at_halt(self, error: Ended) -> None:
        """Look whether the reason is true, wait, and let the bot trade again."""
        world, chance = self.world, self.random.random
        world.note("halt", str(error))
        self.check(error)
        world.duty.halted_at = world.time
        if chance() < 0.3:
            self.check_stays_halted()
        world.pass_time(self.random.choice((30, 300, 1800)) * chance() + 1)
        how = 0.15 if "loss since" in str(error) else chance()
        for _ in range(50):
            try:
                if how < 0.1:
                    self.command("flatten", "--live", "--yes")
                    self._check_flat()
                if how < 0.2:
                    self.command("resume")
                    return
                self.command("run", "--live", "--accept-costs", "--adopt", "--yes", "--once")
                return
            except Ended as again:
                world.note("halt", f"while adopting: {again}")
                self.check(again)
                how = 0.5 if "position" in str(again) else chance()
                if "by hand first" in str(again):
                    world.note("hands", "close what is held on margin")
                    world.api.controls["position"]({"pair": world.rules.altname, "close": True})
                    world.truth.look()
                world.pass_time(60 * chance() + 20)
            except Death:
                self._died()
                world.pass_time(10 * chance())
        raise Violation("a person can mend it", str(error))

    def check(self, error: Ended) -> None:
        if error.code in (76, 77):
            self.world.truth.check_reason(_bare(str(error)), error.code)

    def check_stays_halted(self) -> None:
        """Start again without a look: what was halted must say so and send nothing."""
        world = self.world
        if not world.meta("halted"):
            return
        world.is_halted = True
        with contextlib.suppress(Death):
            try:
                self.command("run", "--live", "--accept-costs")
            except Ended as error:
                if error.code in (76, 77):
                    said = str(error)
                    known = said.startswith("halted: ") or error.code == 77 or "written" in said
                    world.expect(known, "halted means halted", f"instead it said: {said}")
                    world.counts["started again while halted"] += 1
        world.is_halted = False

    def _check_flat(self) -> None:
        world = self.world
        halted = world.meta("halted")
        world.expect(halted, "flatten halts", "no halt is written")
        rest = "too small to be closed" in halted and world.seen("rules")
        flat = abs(world.truth.own) < world.size / 10
        world.expect(rest or flat, "flatten closes", f"{world.truth.own} is held")

    def adopt(self) -> None:
        """Take over what is held, whatever it was that halted the bot."""
        with contextlib.suppress(Ended):
            self.command("run", "--live", "--accept-costs", "--adopt", "--yes", "--once")

    def hands(self) -> None:
        """Trade beside the bot: close, open, reverse, liquidate, or trade something else."""
        world, choice = self.world, self.random.choice
        held, size, pair = world.position(), world.size, world.rules.altname
        what = choice(("close", "open", "reverse", "liquidate", "elsewhere", "elsewhere"))
        side, volume = choice((Side.BUY, Side.SELL)), choice((size, size / 2, 3 * size))
        wish: dict[str, object] = {"pair": pair, "side": side.value, "volume": volume}
        wish["leverage"] = world.leverage
        count = 1
        if what == "elsewhere":
            wish |= {"pair": "SOLUSD", "leverage": 0, "side": "buy", "volume": 1}
            count = choice((3, 3, 3, 60, 60, 300, 1200))
        elif what == "reverse" and held:
            wish |= {"side": "sell" if held > 0 else "buy", "volume": 2 * abs(held)}
        elif what in ("close", "liquidate") and world.leverage:
            wish = {"pair": pair, what: True}
        world.note("hands", f"{count} times {wish}")
        world.counts[f"hands: {what}"] += 1
        world.api.private_api.mark_to_market()
        account = world.api.account
        before = account.balances[QUOTE] + account.fees[QUOTE]
        for _ in range(count):
            with contextlib.suppress(RefusedError):
                world.api.controls["position"](wish)
        if what == "elsewhere":
            world.truth.outside += account.balances[QUOTE] + account.fees[QUOTE] - before
        world.truth.look()

    def _change(self) -> None:
        """Change the configuration between two processes."""
        world = self.world
        pair = world.setting.pair
        values = CHANGES | {"SIZE": tuple(map(str, SIZES[pair])), "PAIR": NAMES[pair], "KEY": KEYS}
        names = [n for n in values if n != "INTERVAL" or world.setting.interval == 1]
        name = self.random.choice(names)
        value = self.random.choice(values[name])
        if name == "LEVERAGE" and self.random.random() < 0.7:
            return
        world.storms.sizes.add(world.settings["SIZE"])
        if name == "KEY":  # Another key of the same account, with nonces of its own.
            world.note("change", f"the key is {value}")
            world.counts["changed KEY"] += world.key != value
            world.key = world.api.key = value
            world.api.nonce = world.truth.nonces.get(value, 0)
            return
        world.counts[f"changed {name}"] += world.settings[name] != value
        world.note("change", f"{name} from {world.settings[name]} to {value}")
        world.settings[name] = value
        if name == "LEVERAGE":  # Coins that were bought are no position, nor the contrary.
            world.truth.rebase()

    def change_journal(self) -> None:
        """Lose the journal if that is planned; make a copy of it now and then."""
        what, self.next_loss = self.next_loss, ""
        self.world.close_reader()
        if what:
            self.lose_journal(what)
        elif self.random.random() < 0.1:
            self.back_up()
        if self.random.random() < 0.02 and not self.world.setting.alone:
            # It must be learned again whose journal is whose.
            (self.folder / "state" / "index.jsonl").unlink(missing_ok=True)

    def back_up(self) -> None:
        """Keep a copy of the journals as they are now."""
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        (self.folder / "backup").mkdir()
        for path in (self.folder / "state").glob("*.db*"):
            shutil.copy(path, self.folder / "backup")

    def lose_journal(self, what: str) -> None:
        """Let the journals be "deleted" or "damaged", or an old "backup" be in their place.

        "older" makes it one of version 0.2.0, as if the program was brought up to date since.
        """
        world, state = self.world, self.folder / "state"
        kept = sorted((self.folder / "backup").glob("*")) if what == "backup" else []
        files = [file for file in state.glob("*.db*") if file.stat().st_size]
        is_alone = len(files) == 1 and files[0].suffix == ".db"  # Nothing waits in a log.
        if (what == "backup" and not kept) or (what in ("damaged", "older") and not is_alone):
            return
        if what == "older":
            (state / "index.jsonl").unlink(missing_ok=True)
            make_older(files[0], world.rules.altname)
            world.counts["journals: older"] += 1
            world.note("hands", "the journal is of 0.2.0")
            return
        if what == "damaged":
            self._start_with_damage(files[0])
        for path in state.glob("*.db*"):
            path.unlink()
        for path in kept:
            shutil.copy(path, state)
        world.counts[f"journals: {what}"] += 1
        world.note("hands", f"the journal is {what}")
        world.truth.lose(is_whole=not kept)

    def _start_with_damage(self, path: Path) -> None:
        """Start on a damaged journal: that must be said, and the file be left as it is."""
        world, spoiled = self.world, spoil_page(path, self.random)
        world.note("hands", "a page of the journal is spoiled")
        world.machine.database = None  # Nobody can look into it.
        with contextlib.suppress(Death):
            try:
                self.command("run", "--live", "--accept-costs")
            except Ended as error:
                true = error.code == 76 and "damaged" in str(error)
                true = true or error.code == 75 or world.disk_failed_at >= world.born
                world.expect(true, "damage is noticed", str(error))
            else:
                world.expect(False, "damage is noticed", "it ran on")
        world.expect(path.read_bytes() == spoiled, "what is damaged is left as it is", path.name)


def _bare(text: str) -> str:
    return text.removeprefix("halted: ").partition(". `krakenbot resume`")[0]


@contextlib.contextmanager
def attached(world: "World") -> Iterator[None]:
    """Stand in for the notifier of the commands, and take note of the parts they are made of."""
    run = importlib.import_module("krakenbot.commands.run")
    for name in sorted({COMMANDS["run"][0], COMMANDS["flatten"][0]}):
        module = importlib.import_module(f"krakenbot.commands.{name}")
        assemble = module.assemble

        def noted(*args: Any, assemble: Any = assemble, **more: Any) -> Any:
            world.parts = assemble(*args, **more)
            world.is_alive = True  # With books of its own.
            return world.parts

        world.machine.replace(module, "assemble", noted)

    @contextlib.contextmanager
    def notifier(config: object) -> Iterator[Any]:
        tell: Any = partial(world.on_event)
        tell.alive = lambda: None
        yield tell

    world.machine.replace(run, "Notifier", notifier)
    yield
