"""What is known of the pair of a file, under whichever of its names, and what has to be assumed."""

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from krakenbot import format
from krakenbot.backtest.files import BadDataError, Columns, exact
from krakenbot.model import MARGIN_RATE_ASSUMED
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated.listing import MARGIN_RATES, PAIRS

# Kraken's names for what others call BTC and DOGE. Source: docs.kraken.com, "Assets", `altname`.
_ALTNAMES = {"BTC": "XBT", "DOGE": "XDG"}
# What Kraken's pairs are quoted in: without a separator a name does not say where its base ends.
_QUOTES = {
    *("USD", "EUR", "GBP", "JPY", "CAD", "CHF", "AUD", "XBT", "BTC", "ETH", "USDT", "USDC"),
    *("USDG", "USDQ", "USDR", "DAI", "PYUSD", "RLUSD", "EURC", "EURQ", "EURR", "EURT", "DOGE"),
}
_DECIMAL_MONEY = ("XBT", "ETH", "XDG")  # Amounts in these have more than five decimals.
_LEVERAGES = tuple(range(2, 11))


def assets_of(name: str) -> tuple[str, str]:
    """Return base and quote of a pair as altnames: of XXBTZUSD as of BTC/USD these are XBT, USD."""
    base, _, quote = re.sub("[-_]", "/", name.upper()).partition("/")
    if not quote:
        ends = (end for end in sorted(_QUOTES, key=len, reverse=True) if base.endswith(end))
        end = next((end for end in ends if end != base), base[-3:])
        base, quote = base[: -len(end)], end
        # XXBTZUSD, ZEURZUSD, XETHXXBT, USDTZUSD: the older codes have a letter more on both sides.
        older = base[:-1]
        if base[-1:] in ("Z", "X") and (format.asset(older) != older or older == "USDT"):
            base = older
    return _altname(base), _altname(quote)


def _altname(code: str) -> str:
    plain = format.asset(code)
    return _ALTNAMES.get(plain, plain)


def rules_of(name: str, path: Path | None, part: Columns, notes: list[str]) -> PairRules:
    """Return the rules of a pair: from a saved AssetPairs answer, the built-in list, or assumed.

    What is assumed is said in `notes`. Raises BadDataError when the answer has no such pair.
    """
    base, quote = assets_of(name)
    rows = PAIRS if path is None else _saved(path)
    for key, row in rows.items():
        try:
            if (base, quote) == assets_of(str(row.get("wsname") or row["altname"])):
                return parse_rules(key, row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadDataError(f"{path}: {key}: {error}") from error
    if path is not None:
        raise BadDataError(f"{path}: has no pair {base}/{quote}")
    columns = part.opens, part.highs, part.lows, part.closes
    decimals = max(-int(exact(x).as_tuple().exponent) for column in columns for x in column)
    decimals = max(decimals, 0)
    tick = Decimal(1).scaleb(-decimals)
    spread = float(200 * tick) / part.closes[-1]
    notes.append(
        f"{base}/{quote} is not in the built-in list of pairs. Assumed: a tick of {tick:f}, as the "
        f"file's prices have it, so a spread of {spread:.4f} %; no smallest order; no position "
        f"limit; leverage up to {_LEVERAGES[-1]} on both sides. Kraken's own rules: --pair-rules "
        "with a saved AssetPairs answer"
    )
    return PairRules(
        pair=base + quote,
        altname=base + quote,
        base=base,
        quote=quote,
        status="online",
        lot_decimals=8,
        pair_decimals=decimals,
        cost_decimals=10 if quote in _DECIMAL_MONEY else 5,
        ordermin=Decimal("1e-8"),
        costmin=Decimal(0),
        leverages_buy=_LEVERAGES,
        leverages_sell=_LEVERAGES,
        margin_call=Decimal(80),
        margin_stop=Decimal(40),
        long_position_limit=None,
        short_position_limit=None,
    )


def rates_of(rules: PairRules, notes: list[str]) -> dict[str, Decimal]:
    """Return what borrowing the pair's two assets costs, by their codes, as fractions."""
    known = {format.asset(code): rate for code, rate in MARGIN_RATES.items()}
    codes = rules.quote, rules.base
    missing = [format.asset(code) for code in codes if format.asset(code) not in known]
    if missing:
        notes.append(
            f"margin rate of {' and '.join(missing)}: {format.percent(100 * MARGIN_RATE_ASSUMED)} "
            "at opening and every 4 h is assumed"
        )
    return {code: known.get(format.asset(code), MARGIN_RATE_ASSUMED) for code in codes}


def _saved(path: Path) -> dict[str, dict[str, object]]:
    """Return the rows of a saved AssetPairs answer."""
    try:
        answer = json.loads(path.read_bytes(), parse_float=Decimal)
        rows = answer.get("result", answer)
        return {key: dict(row) for key, row in rows.items() if key != "error"}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadDataError(f"{path}: not a saved AssetPairs answer: {error}") from error


def choose(names: Sequence[str | None], asked: str | None, where: str) -> str:
    """Return the one pair that files are of.

    Raises BadDataError when their names do not say one, or another than what was `asked` for.
    """
    found = {assets_of(name): name for name in names if name}
    if len(found) > 1:
        raise BadDataError(f"{where}: files of more than one pair: {', '.join(found.values())}")
    if not asked and (not found or None in names):
        raise BadDataError(
            f"{where}: the name does not say which pair it is of; add --pair, such as --pair XBTEUR"
        )
    if asked and found and assets_of(asked) not in found:
        raise BadDataError(f"{where}: of {', '.join(found.values())}, but --pair says {asked}")
    return asked or next(iter(found.values()))
