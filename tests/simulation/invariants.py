"""What must hold at every step, seen from outside: at the wire, in the journal, in the books.

`Truth` keeps what the exchange really did with the bot's orders and compares it with what the
journal says. Nothing here reads the bot's own variables but its account.
"""

import re
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from itertools import takewhile
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from krakenbot.model import ZERO
from krakenbot.simulated.listing import SANDBOX_SECRET

if TYPE_CHECKING:
    from tests.simulation.world import World

QUOTE = "ZUSD"
NOT_SENT, GIVEN_UP, ABSENT = "not sent", "given up", "absent"
# Refusals that pass by themselves: they count neither as an order nor against the bot.
PASSING = (NOT_SENT, "put off", "put off, no order left", "absent")
TICK = Decimal("0.00001")  # The last digit of costs.
IDLE_MAX = 5
SEEN_AFTER_S = 300  # The longest lag of a view, and a minute.


class Truth:
    """Every order of the bot as the exchange knows it, and what the journal may say of them."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.nonces: dict[str, int] = {}
        self.sent: set[str] = set()
        self.executed: dict[str, dict[str, Any]] = {}
        self.taken: set[str] = set()  # Refused orders that were executed, not booked so far.
        self.strangers: set[str] = set()  # Executed orders that the journal does not explain.
        self.newest: str | None = None  # The newest order at the exchange that was looked at.
        self.own = self.own_cash = self.own_fees = self.foreign = ZERO
        self.outside = ZERO  # What trades in other things brought and cost, fees left out.
        self.turns = 0
        self.clean = True  # Nobody but this journal ever traded.
        self.foreign_at = float("-inf")
        self.verified = self.idle = 0  # Orders sent since one has traded.
        self.unlooked: set[str] = set()  # What a lost journal knew, until a person has looked.
        self._looked: set[str] = set()
        self.doubles = 0  # Orders sent although one before them happened, unseen for too long.
        self.doubled_at = float("inf")  # When the newest of them did, until a person has looked.

    def check_request(self, target: str, key: str, body: bytes) -> None:
        """What must hold whenever a signed request reaches the exchange."""
        expect = self.world.expect
        fields = dict(parse_qsl(body.decode()))
        nonce = int(fields["nonce"])
        last = self.nonces.get(key, 0)
        expect(nonce > last, "nonces rise", f"{nonce} after {last} in {target}")
        self.nonces[key] = nonce
        hidden = SANDBOX_SECRET not in target + body.decode()
        expect(hidden, "no secret", "it is in a request")
        if target.endswith("AddOrder"):
            self._check_order(fields)

    def _check_order(self, fields: Mapping[str, str]) -> None:
        world, expect, raw = self.world, self.world.expect, self.world.raw
        name = fields.get("cl_ord_id", "")
        world.counts["orders sent"] += 1
        expect("validate" not in fields, "no rehearsal", name)
        expect(not world.is_halted, "halted means halted", f"{name} is sent")
        self._verify_ends()
        expect("deadline" in fields, "an order has a deadline", str(fields))
        ahead = datetime.fromisoformat(fields["deadline"]).timestamp() - world.time
        # The exchange's clock is asked about every five minutes.
        off = 100 if world.storms.is_on or world.time < world.storms.calm_from + 360 else 5
        slept = world.time < world.duty.woke_at + 30  # While the order was on its way.
        in_time = slept or -off < ahead
        expect(in_time and ahead < 20 + off, "an order has a deadline", f"{ahead:.0f} s ahead")
        # On margin; other coins of the same kind are no business of the bot's.
        is_seen = world.leverage and self.foreign and not world.storms.lied
        is_seen = is_seen and world.time > self.doubled_at + SEEN_AFTER_S
        expect(not is_seen, "a second order stops it", f"{name} is sent")
        expect(name not in self.sent, "one send an intent", f"{name} is sent again")
        self.sent.add(name)
        expect(world.machine.is_locked(), "one process a key", "a lock is free")
        rows = raw("SELECT * FROM intents WHERE outcome IS NULL")
        known = [row for row in rows if row["id"] == name]
        expect(known, "written first", f"{name} is not in the journal")
        others = [row["id"] for row in rows if row["id"] != name]
        expect(not others, "nothing sent while an intent is open", f"{others} are")
        expect(world.machine.is_durable(), "written for keeps", name)
        row = known[0]
        said = fields["type"], Decimal(fields["volume"]), fields.get("reduce_only") == "true"
        meant = row["side"], Decimal(row["volume"]), bool(row["reduce_only"])
        expect(said == meant, "sent as written", f"{said} instead of {meant}")
        text = f"{name} is sent, and nobody has seen {self.unlooked}"
        expect(said[2] or not self.unlooked, "a lost journal is noticed", text)
        closes = int(row["leverage"]) and row["purpose"] == "close"
        expect(not closes or said[2], "closing is reduce_only", name)
        self._check_repeats(row)

    def _check_repeats(self, row: sqlite3.Row) -> None:
        """One order a step that may have traded; never on and on without trading."""
        marks = ", ".join("?" * len(PASSING))
        same = self.world.raw(
            "SELECT id, outcome FROM intents WHERE candle = ? AND interval_s = ? AND purpose = ?"
            f" AND id != ? AND outcome NOT IN ({marks})",
            *(row["candle"], row["interval_s"], row["purpose"], row["id"], *PASSING),
        )
        traded = [other["id"] for other in same if other["id"] in self.executed]
        text = f"candle {row['candle']} {row['purpose']}: {traded}"
        # What is left of a position may be closed in several orders.
        may = row["purpose"] == "close" or not traded
        self.world.expect(may, "one order a step", text)
        self.idle += 1
        self.world.expect(self.idle < 3 * IDLE_MAX, "no hammering", "nothing has traded for long")

    def look(self) -> None:
        """Take note of every order that was executed since the last look."""
        orders = self.world.api.orders
        fresh = [*takewhile(lambda txid: txid != self.newest, reversed(orders))]
        self.newest = next(iter(fresh), self.newest)
        for row in (orders[txid] for txid in reversed(fresh)):
            if row["descr"]["pair"] == self.world.rules.altname:
                self._executed(row)

    def _executed(self, row: dict[str, Any]) -> None:
        world, expect = self.world, self.world.expect
        name = row.get("cl_ord_id", "")
        volume, cost, fee = signed(row)
        world.note("executed", f"{name or 'someone else'} {volume}")
        intent = None
        if name:
            expect(name not in self.executed, "one execution an order", name)
            self.executed[name] = row
            world.counts["orders executed"] += 1
            world.counts["orders executed in a storm"] += world.storms.is_on
            intent = next(iter(world.raw("SELECT * FROM intents WHERE id = ?", name)), None)
        if intent is None:
            world.counts["foreign orders"] += 1
            self.foreign += volume
            self.strangers.add(name)
            self.foreign_at, self.clean = world.time, False
            return
        before = self.own
        if intent["outcome"] is not None and world.blind and not self.doubles:
            # Nobody can tell an order that no view shows for minutes from one that never was.
            self.doubles, self.doubled_at = self.doubles + 1, world.time
            self.strangers.add(name)
            self.foreign, self.foreign_at, self.clean = self.foreign + volume, world.time, False
            return
        ended = f"{name} was {intent['outcome']}"
        expect(intent["outcome"] is None, "what has an end does not happen", ended)
        self.own, self.own_cash = self.own + volume, self.own_cash - cost
        self.own_fees += fee
        self.turns += intent["purpose"] == "turn"
        bound = max(world.sizes, abs(before))
        expect(abs(self.own) <= bound, "never beyond size", f"{before} became {self.own}")

    def recount(self) -> None:
        """Begin anew with the journal that lies there now; it may be another or an older one."""
        own = cash = fees = ZERO
        known = set()
        rows = self.world.raw("SELECT * FROM intents ORDER BY number")
        for row in rows:
            if row["purpose"] == "adopt":
                sign = 1 if row["side"] == "buy" else -1
                own += sign * Decimal(row["executed"])
                cash -= sign * Decimal(row["cost"])
            elif row["id"] in self.executed and row["outcome"] not in (GIVEN_UP, *PASSING):
                known.add(row["id"])
                volume, cost, fee = signed(self.executed[row["id"]])
                own, cash, fees = own + volume, cash - cost, fees + fee
        self.taken = {r["id"] for r in rows if r["id"] in self.executed and r["outcome"] in PASSING}
        self.foreign += self.own - own
        self.own, self.own_cash, self.own_fees = own, cash, fees
        self.strangers = self.executed.keys() - known
        # An id stands for one step of one candle. What nobody executed and no journal remembers
        # may be sent under it again: to the exchange, too, it is as if it had never been.
        self.sent = {row["id"] for row in rows} | self.executed.keys()
        self.verified = max(
            (row["number"] for row in rows if row["outcome"] is not None), default=0
        )
        if self.strangers or self.foreign:
            self.foreign_at, self.clean = self.world.time, False

    def lose(self, *, is_whole: bool) -> None:
        """Begin anew with an older journal or with none: before an order somebody must look.

        Who has lost all of it can only see by the position that something is missing.
        """
        self.foreign_at, self.doubled_at, self.clean = self.world.time, float("inf"), False
        held = self.world.position() if self.world.leverage else self.own
        was_flat = min(abs(held), abs(self.own)) < self.world.size / 10
        self.recount()
        lost = {name for name in self.strangers if Decimal(self.executed[name]["vol_exec"])}
        dim = self.world.blind or self.world.storms.dark or self.world.storms.lied
        dim |= self.world.seen("rules")  # Less than the smallest order is not noticed.
        self.unlooked = set() if dim or (is_whole and was_flat) else lost - self._looked

    def look_at_all(self) -> None:
        """A person has looked at the account."""
        self.idle = self.doubles = 0
        self.doubled_at = float("inf")
        self._looked |= self.executed.keys()
        self.unlooked = set()

    def verify(self) -> None:
        """Compare what the journal says has ended with what the exchange has done."""
        self._verify_ends()
        self._verify_account()

    def _verify_ends(self) -> None:
        world = self.world
        for name in [*self.taken]:  # Once it is found and a person has looked, it is the bot's.
            rows = world.raw("SELECT outcome, executed FROM intents WHERE id = ?", name)
            if rows and rows[0]["outcome"] not in (None, *PASSING):
                self.taken.discard(name)
                if rows[0]["outcome"] != GIVEN_UP:
                    self._change_hands(name, self.executed[name], 1)
        for row in world.raw(
            "SELECT * FROM intents WHERE number > ? AND outcome IS NOT NULL ORDER BY number",
            self.verified,
        ):
            self.verified = row["number"]
            sign = 1 if row["side"] == "buy" else -1
            if row["purpose"] == "adopt":
                volume = sign * Decimal(row["executed"])
                self.own, self.foreign = self.own + volume, self.foreign - volume
                self.own_cash -= sign * Decimal(row["cost"])
                continue
            real = self.executed.get(row["id"])
            self.idle -= row["outcome"] in PASSING
            if Decimal(row["executed"]):
                self.idle = 0
            if (row["outcome"] == GIVEN_UP) != (row["id"] in self.strangers):
                self._change_hands(row["id"], real, -1 if row["outcome"] == GIVEN_UP else 1)
            if row["outcome"] == GIVEN_UP:
                continue
            is_absent = row["outcome"] in (ABSENT, "put off")
            if is_absent and real and world.blind and not self.doubles:
                self.doubles += 1  # It lagged for longer than it was looked for.
                self.doubled_at = world.time
                self.foreign_at = world.time
                self._change_hands(row["id"], real, -1)
                continue
            is_close = row["reduce_only"] and row["outcome"] in PASSING
            if is_close and real and world.seen("yes-after-no"):
                # Refused, not seen then, and yet executed: a second one can only do nothing.
                self.foreign_at = world.time
                self._change_hands(row["id"], real, -1)
                self.taken.add(row["id"])
                continue
            for mine, theirs in (("executed", "vol_exec"), ("cost", "cost"), ("fee", "fee")):
                true = Decimal(real[theirs]) if real else ZERO
                text = f"{row['id']} {row['outcome']}: {mine} {row[mine]}, real {true}"
                world.expect(Decimal(row[mine]) == true, "journal = fills", text)
            world.counts[f"outcome {row['outcome']}"] += 1

    def _change_hands(self, name: str, real: Mapping[str, Any] | None, sign: int) -> None:
        """An order given up is nobody's from now on; one found by a new journal its own."""
        self.strangers ^= {name}
        volume, cost, fee = signed(real) if real else (ZERO, ZERO, ZERO)
        self.own, self.foreign = self.own + sign * volume, self.foreign - sign * volume
        self.own_cash, self.own_fees = self.own_cash - sign * cost, self.own_fees + sign * fee
        self.clean = False

    def _verify_account(self) -> None:
        world = self.world
        if world.raw("SELECT 1 FROM intents WHERE outcome IS NULL"):
            return
        if (account := world.account()) is not None:
            told = [account.held, account.cash, account.fees]
            real = [self.own, self.own_cash, self.own_fees]
            text = f"the account is {told}, really {real}"
            world.expect(told == real, "journal = fills", text)
        if world.leverage:
            books, total = world.position(), self.own + self.foreign
            world.expect(books == total, "fills = books", f"{books}, the fills are {total}")
            self._check_equity_of_books()

    def _check_equity_of_books(self) -> None:
        off, equity = self._equity_off(), self.world.api.account.summary(QUOTE).equity
        self.world.expect(not off, "equity identity", f"{equity} is {off} too much")

    def _equity_off(self) -> Decimal:
        account = self.world.api.account
        costs = account.fees.get(QUOTE, ZERO) + account.rollovers.get(QUOTE, ZERO)
        gains = account.realized.get(QUOTE, ZERO) + account.summary(QUOTE).unrealized_pnl
        expected = self.world.setting.balance + self.outside - costs + gains
        return account.summary(QUOTE).equity - expected

    def rebase(self) -> None:
        """Begin anew with another kind of position: coins that were bought, or one on margin."""
        self.foreign = self.world.position() - self.own
        self.outside += self._equity_off()
        self.foreign_at, self.clean = self.world.time, False

    def check_equity_of_journal(self) -> None:
        """Start + the journal's profit = the exchange's equity; a turn's fees round twice."""
        world = self.world
        books = world.api.account.positions.get(world.setting.pair)
        account = world.account()
        if not self.clean or not world.leverage or books is None or account is None:
            return
        if any(entry.type == "trade" for entry in world.api.account.ledger):
            return  # Someone has spent quote currency on another pair.
        world.api.private_api.mark_to_market()
        equity = world.api.account.summary(QUOTE).equity
        difference = abs(equity - world.setting.balance - account.pnl(books.price))
        text = f"the journal's profit and the exchange's differ by {difference}"
        world.expect(difference <= TICK * self.turns, "equity identity", text)
        world.counts["journals exact to the end"] += 1

    def check_no_secret(self) -> None:
        for (table,) in self.world.raw("SELECT name FROM sqlite_master WHERE type = 'table'"):
            text = str([tuple(row) for row in self.world.raw(f"SELECT * FROM {table}")])
            self.world.expect(SANDBOX_SECRET not in text, "no secret", f"table {table}")

    def check_reason(self, text: str, code: int) -> None:
        """A stop says why, what it says is true, and a halt is on disk."""
        world, expect = self.world, self.world.expect
        expect(len(text) > 15, "a halt says why", repr(text))
        name = "true reason"
        recent = world.time - 3600
        if code == 77:
            refused = [when for when in world.trouble_maker.refused_keys if when > recent]
            expect(refused, "77 only with its cause", text)
            if self.own or world.raw("SELECT 1 FROM intents WHERE outcome IS NULL"):
                lasted_s = refused[-1] - refused[0]
                expect(lasted_s >= 60, "77 only with its cause", f"after {lasted_s:.0f} s: {text}")
            return
        if re.search("cannot be written|damaged|already holds", text):
            expect(world.disk_failed_at > recent, name, text)
            return
        expect(world.meta("halted"), "every halt is on disk", text)
        for words, is_true in self._reasons(text, recent).items():
            if re.search(words, text):
                expect(is_true, name, f"{text}; {self.own} is held")
                return
        expect(False, name, f"not expected at all: {text}")

    def _reasons(self, text: str, recent: float) -> dict[str, object]:
        """Return the words of every reason to halt, and what makes it true."""
        world = self.world
        is_hidden = world.blind or world.storms.dark
        # A start compares from the newest record on, which may be of the candle before, or of
        # hours ago when no start could read the trades since then.
        newest = world.raw("SELECT max(decided) FROM decisions")[0][0] or recent
        since = min(recent, newest) - 2 * world.interval_s
        unfilled = world.raw(
            "SELECT executed FROM intents WHERE outcome != 'not sent' ORDER BY number DESC LIMIT 5"
        )
        is_flat = abs(self.own) < world.size or ("too small" in text and world.seen("rules"))
        return {
            r"holds (\S+) \S+ the journal records (?!\1:)\S+:": self.foreign
            or self.foreign_at > recent
            or is_hidden,
            "is not found, yet|unknown trades|does not know:": self.foreign_at > since
            or self.strangers
            or is_hidden,
            "in a row were not filled": len(unfilled) == 5
            and not any(Decimal(row[0]) for row in unfilled),
            "loss since": world.setting.max_loss is not None and is_flat,
            "does not know it|several orders|still open": is_hidden or world.seen("other-order"),
            "was refused, and yet": world.storms.lied or world.blind,
            "margin, leverage is now": world.changed("leverage"),
            "the journal is new|by hand|could not close": True,
            "has refused lookups for an hour": world.seen("dead-view"),
        }


def signed(row: Mapping[str, Any]) -> tuple[Decimal, Decimal, Decimal]:
    """Return what an order did: signed volume, signed cost, fee."""
    sign = 1 if row["descr"]["type"] == "buy" else -1
    return sign * Decimal(row["vol_exec"]), sign * Decimal(row["cost"]), Decimal(row["fee"])
