"""The sandbox's pairs and assets, as rows of Kraken's AssetPairs and Assets."""

import re
from decimal import Decimal
from typing import Any

from krakenbot import format

SANDBOX_KEY = "SANDBOX-KEY"
# It is public on purpose: only a sandbox accepts it.
SANDBOX_SECRET = (
    "a3Jha2VuYm90IHNhbmRib3ggc2VjcmV0OiBwdWJsaWMsIGdvb2QgZm9yIG5vdGhpbmcgYnV0IGEgc2FuZGJveA=="
)

Row = dict[str, Any]


def _code(name: str) -> str:
    """Return Kraken's code of an asset: XXBT for XBT, ZUSD for USD, SOL for SOL."""
    return next((old for old in (f"X{name}", f"Z{name}") if format.asset(old) == name), name)


def _pair(base: str, quote: str, decimals: int, ordermin: str, most: int, *limits: int) -> Row:
    """Return a row of AssetPairs with leverages up to `most`."""
    codes = {"base": _code(base), "quote": _code(quote)}
    leverages = list(range(2, most + 1))
    names = ("long_position_limit", "short_position_limit")
    return (
        {"altname": base + quote, "wsname": f"{base}/{quote}", "status": "online", **codes}
        | {"aclass_base": "currency", "aclass_quote": "currency", "lot": "unit"}
        | {"pair_decimals": decimals, "lot_decimals": 8, "cost_decimals": 5, "lot_multiplier": 1}
        | {"ordermin": ordermin, "costmin": "0.45" if quote == "EUR" else "0.5"}
        | {"tick_size": f"{Decimal(1).scaleb(-decimals):f}", "margin_call": 80, "margin_stop": 40}
        | {"leverage_buy": leverages, "leverage_sell": leverages, "fees": [], "fees_maker": []}
        | {"fee_volume_currency": "ZUSD", "execution_venue": "international"}
        | dict(zip(names, limits, strict=False))
    )


# Kraken's names for BTC and DOGE. Source: docs.kraken.com, "Assets", `altname`.
_ALTNAMES = {"BTC": "XBT", "DOGE": "XDG"}
# Quote currencies on Kraken, to split a pair's name that has no separator.
_QUOTES = {
    *("USD", "EUR", "GBP", "JPY", "CAD", "CHF", "AUD", "XBT", "BTC", "ETH", "USDT", "USDC"),
    *("USDG", "USDQ", "USDR", "DAI", "PYUSD", "RLUSD", "EURC", "EURQ", "EURR", "EURT", "DOGE"),
}

# As Kraken listed them in autumn 2026, but the position limits of XBTEUR, ETHUSD and USDTUSD are
# assumed, and so is all of BONKUSD.
PAIRS: dict[str, Row] = {
    "XXBTZUSD": _pair("XBT", "USD", 1, "0.00005", 10, 350, 250),
    "XXBTZEUR": _pair("XBT", "EUR", 1, "0.00005", 10, 250, 200),
    "XETHZUSD": _pair("ETH", "USD", 2, "0.001", 10, 7000, 5000),
    "SOLUSD": _pair("SOL", "USD", 2, "0.06", 10, 37000, 24000),
    "USDTZUSD": _pair("USDT", "USD", 5, "5", 3, 5000000, 2500000),
    "BONKUSD": _pair("BONK", "USD", 8, "200000", 0),
}

# The first price of a random market, in ticks.
FIRST_TICKS = dict(zip(PAIRS, (816840, 705120, 312045, 18233, 99990, 1450), strict=True))


def asset_row(altname: str, decimals: int, shown: int, **optional: float) -> Row:
    """Return a row of Assets; `shown` is its `display_decimals`."""
    digits = {"decimals": decimals, "display_decimals": shown}
    return {"aclass": "currency", "altname": altname, **digits, **optional, "status": "enabled"}


# A sandbox over a file adds its pair's assets. A loan costs `margin_rate` percent at opening and
# every 4 h; BONK cannot be borrowed. Source: support.kraken.com 206161568.
ASSETS: dict[str, Row] = {
    "ZUSD": asset_row("USD", 4, 2, collateral_value=1, margin_rate=0.025),
    "ZEUR": asset_row("EUR", 4, 2, collateral_value=1, margin_rate=0.02),
    "USDT": asset_row("USDT", 8, 4, collateral_value=0.9, margin_rate=0.02),
    "XXBT": asset_row("XBT", 10, 5, margin_rate=0.01),
    "XETH": asset_row("ETH", 10, 5, margin_rate=0.02),
    "SOL": asset_row("SOL", 10, 5, margin_rate=0.02),
    "BONK": asset_row("BONK", 4, 2),
}
_PERCENT = {code: row["margin_rate"] for code, row in ASSETS.items() if "margin_rate" in row}
MARGIN_RATES = {code: Decimal(str(percent)) / 100 for code, percent in _PERCENT.items()}


def aliases(key: str, row: Row) -> set[str]:
    """Return the names by which Kraken's methods know a pair: not XBT/USD, but BTC/USD."""
    modern = row["wsname"].replace("XBT/", "BTC/")
    return {key, row["altname"], modern, modern.replace("/", "")}


def unlisted(base: str, quote: str, decimals: int) -> Row:
    """Return a row of AssetPairs, without minimum and position limit, for a pair not in PAIRS."""
    row = _pair(base, quote, decimals, "0.00000001", 10) | {"costmin": "0"}
    return row | {"cost_decimals": 10} if quote in ("XBT", "ETH", "XDG") else row


def assets_of(name: str) -> tuple[str, str]:
    """Return base and quote of a pair as altnames: XBT and USD for XXBTZUSD and for BTC/USD."""
    base, _, quote = re.sub("[-_]", "/", name.upper()).partition("/")
    if not quote:
        ends = (end for end in sorted(_QUOTES, key=len, reverse=True) if base.endswith(end))
        end = next((end for end in ends if end != base), base[-3:])
        base, quote = base[: -len(end)], end
        # XXBTZUSD, ZEURZUSD, XETHXXBT, USDTZUSD: older asset codes begin with an X or Z.
        older = base[:-1]
        if base[-1:] in ("Z", "X") and (format.asset(older) != older or older == "USDT"):
            base = older
    base, quote = format.asset(base), format.asset(quote)
    return _ALTNAMES.get(base, base), _ALTNAMES.get(quote, quote)
