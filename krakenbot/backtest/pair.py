"""The rules and margin rates of a file's pair, known or assumed."""

import json
from decimal import Decimal
from itertools import chain
from pathlib import Path

from krakenbot import format
from krakenbot.backtest.columns import BadDataError, Columns, exact
from krakenbot.model import MARGIN_RATE_ASSUMED
from krakenbot.pairs import PairRules, parse_rules
from krakenbot.simulated.listing import MARGIN_RATES, PAIRS, assets_of, unlisted


def rules_of(name: str, path: Path | None, part: Columns, notes: list[str]) -> PairRules:
    """Return the rules of the pair called `name`, and add to `notes` what is assumed.

    They come from the saved AssetPairs answer at `path` or, if that is None, from the built-in
    list; of a pair that is not in it they are assumed, the tick from the prices of `part`. Raises
    BadDataError when the answer cannot be used.
    """
    base, quote = assets_of(name)
    try:
        answer = PAIRS if path is None else json.loads(path.read_bytes(), parse_float=Decimal)
        for key, row in answer.get("result", answer).items():
            if (base, quote) == assets_of(str(row.get("wsname") or row["altname"])):
                return parse_rules(key, row)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f": {error}" if isinstance(error, OSError | ValueError) else ""
        raise BadDataError(f"{path}: not a saved AssetPairs answer{why}") from error
    if path is not None:
        raise BadDataError(f"{path}: has no pair {base}/{quote}")
    prices = map(exact, chain(part.opens, part.highs, part.lows, part.closes))
    decimals = max(-int(price.normalize().as_tuple().exponent) for price in prices)
    assumed = unlisted(base, quote, max(decimals, 0))
    spread = 200 * Decimal(assumed["tick_size"]) / exact(part.closes[-1])
    notes.append(
        f"{base}/{quote} is not in the built-in list of pairs. Assumed: a tick of "
        f"{assumed['tick_size']}, the last decimal of its first prices, so a spread of "
        f"{spread:.4f} %; no minimum order; no position limit; leverage up to 10 on both sides. "
        "For Kraken's own rules pass a saved AssetPairs answer with --pair-rules"
    )
    return parse_rules(base + quote, assumed)


def rates_of(rules: PairRules, notes: list[str]) -> dict[str, Decimal]:
    """Return the margin rates of the pair's assets by code, as fractions; note what is assumed."""
    known = {format.asset(code): rate for code, rate in MARGIN_RATES.items()}
    names = {code: format.asset(code) for code in (rules.quote, rules.base)}
    if missing := [name for name in names.values() if name not in known]:
        notes.append(
            f"margin rate of {' and '.join(missing)}: {format.percent(100 * MARGIN_RATE_ASSUMED)} "
            "at opening and every 4 h is assumed"
        )
    return {code: known.get(name, MARGIN_RATE_ASSUMED) for code, name in names.items()}
