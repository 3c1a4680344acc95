"""What the sandbox lists: pairs and assets, in the form of Kraken's AssetPairs and Assets."""

import re
from decimal import Decimal
from typing import Any

from krakenbot import format

SANDBOX_KEY = "SANDBOX-KEY"
# Public on purpose: it opens nothing but a sandbox.
SANDBOX_SECRET = (
    "a3Jha2VuYm90IHNhbmRib3ggc2VjcmV0OiBwdWJsaWMsIGdvb2QgZm9yIG5vdGhpbmcgYnV0IGEgc2FuZGJveA=="
)

_CODES = {"XBT": "XXBT", "ETH": "XETH", "USD": "ZUSD", "EUR": "ZEUR", "GBP": "ZGBP"}

Row = dict[str, Any]


def _pair(base: str, quote: str, decimals: int, ordermin: str, most: int, *limits: int) -> Row:
    """Return a row of AssetPairs with leverages up to `most`."""
    codes = {"base": _CODES.get(base, base), "quote": _CODES.get(quote, quote)}
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


# Kraken's names for what others call BTC and DOGE. Source: docs.kraken.com, "Assets", `altname`.
_ALTNAMES = {"BTC": "XBT", "DOGE": "XDG"}
# What Kraken's pairs are quoted in: without a separator a name does not say where its base ends.
_QUOTES = {
    *("USD", "EUR", "GBP", "JPY", "CAD", "CHF", "AUD", "XBT", "BTC", "ETH", "USDT", "USDC"),
    *("USDG", "USDQ", "USDR", "DAI", "PYUSD", "RLUSD", "EURC", "EURQ", "EURR", "EURT", "DOGE"),
}

# As listed in autumn 2026; of XBTEUR, ETHUSD and USDTUSD the limits, of BONKUSD all is a guess.
PAIRS: dict[str, Row] = {
    "XXBTZUSD": _pair("XBT", "USD", 1, "0.00005", 10, 350, 250),
    "XXBTZEUR": _pair("XBT", "EUR", 1, "0.00005", 10, 250, 200),
    "XETHZUSD": _pair("ETH", "USD", 2, "0.001", 10, 7000, 5000),
    "SOLUSD": _pair("SOL", "USD", 2, "0.06", 10, 37000, 24000),
    "USDTZUSD": _pair("USDT", "USD", 5, "5", 3, 5000000, 2500000),
    "BONKUSD": _pair("BONK", "USD", 8, "200000", 0),
}

# The price at which a random market begins, in units of the last digit.
FIRST_TICKS = dict(zip(PAIRS, (816840, 705120, 312045, 18233, 99990, 1450), strict=True))


def _asset(altname: str, decimals: int, shown: int, **optional: float) -> Row:
    digits = {"decimals": decimals, "display_decimals": shown}
    return {"aclass": "currency", "altname": altname, **digits, **optional, "status": "enabled"}


# `margin_rate` is in percent, for opening and for each 4 h, of what is lent; BONK is not.
ASSETS: dict[str, Row] = {
    "ZUSD": _asset("USD", 4, 2, collateral_value=1, margin_rate=0.025),
    "ZEUR": _asset("EUR", 4, 2, collateral_value=1, margin_rate=0.02),
    "USDT": _asset("USDT", 8, 4, collateral_value=0.9, margin_rate=0.02),
    "XXBT": _asset("XBT", 10, 5, margin_rate=0.01),
    "XETH": _asset("ETH", 10, 5, margin_rate=0.02),
    "SOL": _asset("SOL", 10, 5, margin_rate=0.02),
    "BONK": _asset("BONK", 4, 2),
}
_TOLD = {code: row["margin_rate"] for code, row in ASSETS.items() if "margin_rate" in row}
MARGIN_RATES = {code: Decimal(str(percent)) / 100 for code, percent in _TOLD.items()}


def aliases(key: str, row: Row) -> set[str]:
    """Return all the names of a pair; Kraken's REST methods know its XBT/USD as BTC/USD only."""
    modern = row["wsname"].replace("XBT/", "BTC/")
    return {key, row["altname"], row["wsname"], modern, modern.replace("/", "")}


def unlisted(base: str, quote: str, decimals: int) -> Row:
    """Return a row for a pair outside the table: no minimum and no limit, as none is known."""
    row = _pair(base, quote, decimals, "0.00000001", 10) | {"costmin": "0"}
    return row | {"cost_decimals": 10} if quote in ("XBT", "ETH", "XDG") else row


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
