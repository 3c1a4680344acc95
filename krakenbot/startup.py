"""The checks before the first decision. A check raises, or returns a reason to close only."""

import hashlib
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from krakenbot import format, identity, log, rulefile
from krakenbot.bot import Bot, Check
from krakenbot.config import Config
from krakenbot.errors import (
    ConfigError,
    ContradictionError,
    ExchangeError,
    KeyRefusedError,
    LaterError,
    RefusedError,
    StopError,
    UnansweredError,
)
from krakenbot.format import volume
from krakenbot.identity import Identity, account_name
from krakenbot.kraken.spot import FORBIDDEN_PERMISSIONS, NEEDED_PERMISSIONS, Spot
from krakenbot.lock import Lock, Nonces
from krakenbot.model import ZERO, KeyInfo, MarginSummary, Purpose, Quote, Side, Step
from krakenbot.order_states import VISIBLE_S
from krakenbot.orders import DEADLINE_S
from krakenbot.pairs import PairRules, earn_balances, plain
from krakenbot.plan import plan_of
from krakenbot.retry import retry
from krakenbot.risk import FEE_RATE_ASSUMED, RiskInputs, objection

NEEDED_PATIENCE_S = 60.0  # For an answer at the start, while something is held.
OVERLAP_S = 5  # For the error of our clock.
RICH = MarginSummary(Decimal(10**15), ZERO, ZERO)  # So that money is no objection.


class Start(NamedTuple):
    """What the checks need besides the bot. `began` is by the monotonic clock."""

    config: Config
    lock: Lock
    identity: Identity
    began: float
    # In paper and validate mode `nonces` is None: trades and costs are not checked.
    nonces: Nonces | None = None  # The live key's.
    info: KeyInfo | None = None  # The key's, if `learn` had to read it.
    accept_costs: bool = False
    adopts: bool = False


def checks_of(start: Start) -> tuple[tuple[Check, ...], tuple[Check, ...]]:
    """Return the checks before trading, in their order, and those before only closing.

    On margin a close does not wait for a check of the trades: it is `reduce_only`, and only sent
    when exchange and journal agree. Without margin it could sell the user's own coins.
    """
    parts = (partial(try_strategy, start), partial(check_settings, start))
    # The rates are read once the key is known to be the right one.
    settings = (lambda bot: bot.market.read_rates(), read_candles, *parts)
    account = partial(check_account, start)
    if start.nonces is None:
        return ((account, *settings) if start.config.mode == "validate" else settings), ()
    trades, closing = partial(check_trades, start), partial(check_account, start, opens=False)
    needs_trades = not start.config.leverage or start.adopts
    return (account, trades, *settings), ((closing, trades) if needs_trades else (closing,))


def learn(config: Config, exchange: Spot, key: str) -> tuple[Identity, KeyInfo | None]:
    """Return the exchange's ids of pair and account, from the index if they are in it.

    `key` is the key's fingerprint, empty without a key. The second value is the key's information,
    if it had to be requested. Raises ConfigError when there is no such pair.
    """
    pair = identity.recall(config, "pair", config.pair)
    if not pair:
        try:
            rules = exchange.rules()
        except RefusedError as error:
            raise ConfigError(f"pair = {config.pair!r}: {error}") from error
        pair = rules.pair
        for spelling in {config.pair, rules.altname}:
            identity.remember(config, "pair", spelling, pair)
    account, info = identity.recall(config, "account", key) if key else "", None
    if key and not account:
        try:
            info = exchange.key_info()
        except RefusedError as error:
            log.warning("the account's id cannot be read reason=%s", error)
            return Identity(pair), None
        account = account_name(info.account)
        if account:
            identity.remember(config, "account", key, account)
    return Identity(pair, account), info


def check_account(start: Start, bot: Bot, *, opens: bool = True) -> None:
    """Raise StopError when key and journal belong to different accounts.

    With `opens`, also when the key has too many or too few permissions (exit code 77).
    """
    is_needed = not opens or bot.journal.is_exposed()
    info = _key_info(start, bot, is_known=is_needed and start.identity.account != "")
    if info is None:
        return
    account = account_name(info.account)
    if account and start.identity.account not in ("", account):
        raise StopError(
            "this API key belongs to another account than the journal. Nothing was sent. Use a key "
            "of the journal's account, or another state.directory"
        )
    if start.nonces is not None and start.nonces.seen is None:
        start.nonces.seen = info.nonce  # Only the first answer tells of earlier processes.
    if opens:
        refuse_permissions(info)


def _key_info(start: Start, bot: Bot, *, is_known: bool) -> KeyInfo | None:
    """Return the key's information; None when Kraken refuses the method.

    For a key that is known from earlier and needed now, None also when it cannot be read for a
    minute: what is held must be looked after.
    """
    try:
        return start.info or bot.exchange.key_info()
    except RefusedError as error:
        problem: Exception = error
    except KeyRefusedError as error:
        if error.lockout or not is_known:
            raise
        problem = error
    except ExchangeError:
        if not is_known:
            raise
        try:
            return retry(bot.exchange.key_info, bot.clock, NEEDED_PATIENCE_S)
        except LaterError as error:
            problem = error
    log.warning("the key's permissions cannot be read reason=%s", problem)
    return None


def refuse_permissions(info: KeyInfo) -> None:
    """Raise StopError(77) when the key may withdraw, or lacks what trading needs."""
    too_much = [code for code in FORBIDDEN_PERMISSIONS if code in info.permissions]
    if too_much:
        raise StopError(
            f"the API key may withdraw ({', '.join(too_much)}): a bot's key must not. Make a new "
            "key without withdrawal permissions",
            77,
        )
    missing = [code for code in NEEDED_PERMISSIONS if code not in info.permissions]
    if missing:
        raise StopError(f"the API key lacks permissions: {', '.join(missing)}", 77)


def check_trades(start: Start, bot: Bot) -> None:
    """Halt when the exchange shows trades of the pair that the journal does not know.

    A journal can be an old copy: a snapshot, a backup, lost writes. So before anything is sent,
    all trades since its newest record must be its own. They are read once the newest of them is
    sure to be visible. No wait is needed when the exchange has seen no nonce of this key after the
    last one stored here, and the journal's newest intent is the one stored with that nonce. If the
    journal is new, its lock file says whether one was lost; then the last minutes are checked.
    """
    journal, clock, nonces = bot.journal, bot.clock, start.nonces
    assert nonces is not None
    newest = journal.newest_intent()
    mark = newest.id if newest else ""
    is_new = not journal.get("created")
    is_lost = is_new and start.lock.read() == "live"
    if is_lost or not is_new:
        visible_s = DEADLINE_S + VISIBLE_S
        since = journal.newest_record()
        if is_lost or start.adopts:  # An adoption takes over whatever was traded before.
            since = int(clock.now() - visible_s)
        wait_s = start.began + visible_s - clock.monotonic()
        if wait_s > 0 and not nonces.prove(mark):
            why = "a bot has run here before" if is_lost else "the journal may be an old copy"
            log.warning("waiting %.0f s until any earlier order is visible: %s", wait_s, why)
            clock.wait(wait_s)
        _compare_trades(start, bot, since)
    nonces.set_mark(mark)
    is_settled = journal.get("minded") or start.config.leverage or start.adopts
    if start.lock.read() == "live" and not is_settled:
        check_untracked_balance(bot)
    if is_new or not journal.get("minded"):  # The question of a lost journal's coins is settled.
        journal.put(created=journal.get("created") or int(clock.now()), minded=1)
    start.lock.write("live")


def _compare_trades(start: Start, bot: Bot, since: int) -> None:
    journal, exchange = bot.journal, bot.exchange
    own, unseen_until = set(journal.get("foreign_orders").split()), 0
    for intent in journal.open_intents():
        try:
            found = exchange.find(intent.id, intent.created)
        except ContradictionError:
            if not start.adopts:  # Whatever they traded is taken over.
                raise
            continue
        if found:
            own.add(found.exchange_order_id)
        else:
            unseen_until = max(unseen_until, intent.deadline + VISIBLE_S)
    now = int(bot.clock.now())
    traded = exchange.traded_orders(since - OVERLAP_S, now)
    others = [name for name in dict.fromkeys(traded) if name not in own]
    unknown = [name for name in others if not journal.knows_order(name)]
    if not unknown:
        return
    if now < unseen_until:  # TradesHistory may show a trade before its order can be found.
        raise UnansweredError("an open order is not visible everywhere yet")
    # A person who resumes or adopts after this halt has seen these orders. With `created` set to
    # now, the next order is looked up before it is sent: a lost journal may have sent it.
    seen = {"foreign_orders": " ".join([*sorted(own), *unknown]), "created": now, "minded": 1}
    if start.adopts:
        journal.put(**seen)
        log.warning("adopting, with orders that the journal does not know: %s", unknown)
        return
    held = None  # Without margin the balance may hold other coins, too.
    if start.config.leverage:
        with suppress(ExchangeError):
            held = exchange.position().volume
    holds = "" if held is None else f"; the exchange holds {plain(held)}"
    raise journal.halt(
        f"the exchange shows trades of {start.config.pair} that the journal does not know: "
        f"{', '.join(unknown)}. It has no entry after {format.moment(since)} and records "
        f"{plain(journal.account().held)}{holds}. Either it is an old copy (a snapshot, a backup, "
        "lost writes), or someone else traded. Nothing was sent. Look at Kraken; `krakenbot adopt` "
        "continues with what is held (if the bot trades without margin: at most `size`), and "
        "`krakenbot resume` with what the journal records",
        held,
        **seen,
    )


def check_untracked_balance(bot: Bot) -> None:
    """Without margin, halt when coins are owned: only the lost journal knew which are the bot's."""
    rules, balances = bot.market.rules, bot.exchange.balances()
    owned, earning = balances.get(rules.base, ZERO), earn_balances(balances, rules.base)
    if owned + sum(earning.values()) >= rules.ordermin:
        more = "".join(f" and {plain(amount)} {code}" for code, amount in earning.items())
        raise bot.journal.halt(
            f"the account owns {volume(owned, rules.base)}{more}, the journal is new and records "
            "0, but the bot has traded here before. `krakenbot adopt` takes up to `size` as the "
            "bot's own, `krakenbot resume` nothing",
            created=int(bot.clock.now()),
            minded=1,
        )


def read_candles(bot: Bot) -> str | None:
    """Read the candles for the next checks; while something is held, for a minute at most."""
    if bot.journal.get("flatten"):
        return None  # It only closes, which needs no candles.
    try:
        bot.window.read()
    except RefusedError as error:
        return _refuse(bot, f"the pair cannot be traded: {error}")
    except ExchangeError:
        if not bot.journal.is_exposed():
            raise
        with suppress(LaterError):
            retry(bot.window.read, bot.clock, NEEDED_PATIENCE_S)
    return None


def try_strategy(start: Start, bot: Bot) -> None:
    """Log and record which strategy runs; RuleError when a rule file fails its trial."""
    chosen, name = start.config.strategy, start.config.strategy.title
    if chosen.file is not None:
        rule = rulefile.load(chosen.file)
        finished = bot.window.known()
        if len(finished) < rule.candles:
            log.warning("strategy not tried: it needs %s candles", rule.candles)
        rule.try_on(finished, chosen.parameters)
        name += f" {rule.sha256}"
    log.info("strategy %s", name)
    settings = f"{name} {chosen} {start.config.interval} min"
    if bot.journal.get("direction_by") == f"{name} {chosen}":  # As up to 0.3.2.
        bot.journal.put(direction_by=settings)
    if bot.journal.get("direction_by") != settings:
        # The last direction of another strategy must not be traded on, and the difference to its
        # first direction is no turn.
        changed = {"direction": None, "first_direction": None}
        bot.journal.put(strategy=name, direction_by=settings, **changed)


def check_settings(start: Start, bot: Bot) -> str | None:
    """Refuse settings that cannot trade or cost too much; with a position, allow closing only.

    Raises StopError when the pair's name now means another market than the journal's.
    """
    rules, former, candles = bot.market.rules, start.identity.pair, bot.window.known()
    if rules.pair != former:
        raise StopError(
            f"pair = {start.config.pair!r} meant {former} and now means {rules.pair}; the "
            f"journal belongs to {former}. Nothing was sent. Use another state.directory for "
            f"{rules.pair}"
        )
    if bot.journal.get("flatten"):
        return None  # It only closes, whatever that costs.
    try:
        price = candles[-1].close if candles else bot.exchange.quote().mid
    except RefusedError as error:
        return _refuse(bot, f"the pair cannot be traded: {error}")
    # The pair's state and spread now do not matter: can either side ever be opened?
    online, calm = rules._replace(status="online"), Quote(price, price)
    reasons = [*objections(start.config, online, calm, RICH, FEE_RATE_ASSUMED).values()]
    if None not in reasons:
        _wait_for_margin(bot)
        return _refuse(bot, f"these settings can never trade: {reasons[0]}")
    against = next(filter(None, reasons), "")
    return _check_costs(start, bot, against) if start.nonces is not None else None


def _wait_for_margin(bot: Bot) -> None:
    """Raise LaterError when nothing is held and the pair lacks margin, perhaps for minutes only.

    That is likely while the pair is not online, or if the bot's newest order had this leverage.
    """
    rules, leverage, newest = bot.market.rules, bot.plan.leverage, bot.journal.newest_intent()
    has_margin = rules.leverage_buy or rules.leverage_sell
    had_margin = rules.status != "online" or (newest is not None and newest.leverage == leverage)
    if leverage and had_margin and not has_margin and not bot.journal.is_exposed():
        bot.market.learn()  # The next try looks at the rules as they are then.
        raise LaterError(f"not trading yet: {rules.altname} ({rules.status}) has no margin now")


def objections(
    config: Config, rules: PairRules, quote: Quote, summary: MarginSummary, fee_rate: Decimal
) -> dict[Side, str | None]:
    """Return what speaks against opening `size` on each side that the settings allow, or None."""
    inputs = RiskInputs("online", quote, rules, ZERO, summary, 0, fee_rate, 0.0)
    reasons: dict[Side, str | None] = {}
    for side in (Side.BUY, Side.SELL) if config.leverage else (Side.BUY,):
        step = Step(Purpose.OPEN, side, rules.round_volume(config.size), False)
        against = objection(step, config.leverage, inputs, plan_of(config).limits)
        reasons[side] = against.reason if against else None
    return reasons


def _check_costs(start: Start, bot: Bot, against: str) -> str | None:
    """Refuse settings whose daily costs exceed the limit, unless passed or accepted before.

    `against` says why one side can never be opened; it is empty when both can.
    """
    from krakenbot.backtest.costs import fee_guard

    config, journal, market = start.config, bot.journal, bot.market
    # All that affects costs in percent; size does not.
    kept = (start.identity.pair, config.interval, config.leverage, config.reversal, config.strategy)
    text = f"{kept} {journal.get('strategy')} {config.risk.max_fee_percent_per_day}"
    key = f"costs {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if journal.get(key):
        log.warning("costs: these settings were checked before: %s", journal.get(key))
        return None
    rates = market.fee_rate, market.margin_rates
    costs = fee_guard(config, bot.window.known(), market.rules, *rates)
    for line in costs.lines:
        log.warning("costs: %s", line)
    if not costs.is_too_much or start.accept_costs:
        journal.put(**{key: costs.lines[0]})
        return None
    lines = ["it costs too much", *costs.lines, "`run --accept-costs` starts it anyway"]
    words = "\n".join(filter(None, (against, *lines)))
    return _refuse(bot, words)


def _refuse(bot: Bot, reason: str) -> str:
    """Raise ConfigError; while something is held or unknown, return the reason on one line."""
    if not bot.journal.is_exposed():
        raise ConfigError(f"not trading: {reason}\nNothing is held, and nothing is opened")
    only = log.joined(reason)
    log.warning("closing only, nothing is opened: %s", only)
    return only
