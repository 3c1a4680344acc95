"""What the sandbox lists: pairs and assets, in the form of Kraken's AssetPairs and Assets."""

from decimal import Decimal
from typing import Any

SANDBOX_KEY = "SANDBOX-KEY"
# Public on purpose: it opens nothing but a sandbox.
SANDBOX_SECRET = (
    "a3Jha2VuYm90IHNhbmRib3ggc2VjcmV0OiBwdWJsaWMsIGdvb2QgZm9yIG5vdGhpbmcgYnV0IGEgc2FuZGJveA=="
)

_CODES = {"XBT": "XXBT", "ETH": "XETH", "USD": "ZUSD", "EUR": "ZEUR", "GBP": "ZGBP"}
_UP_TO_10 = list(range(2, 11))


def _pair(
    base: str,
    quote: str,
    decimals: int,
    ordermin: str,
    leverages: list[int],
    limits: tuple[int, ...] = (),
) -> dict[str, Any]:
    names = ("long_position_limit", "short_position_limit")
    return {
        "altname": base + quote,
        "wsname": f"{base}/{quote}",
        "aclass_base": "currency",
        "base": _CODES.get(base, base),
        "aclass_quote": "currency",
        "quote": _CODES.get(quote, quote),
        "lot": "unit",
        "cost_decimals": 5,
        "pair_decimals": decimals,
        "lot_decimals": 8,
        "lot_multiplier": 1,
        "leverage_buy": leverages,
        "leverage_sell": leverages,
        "fees": [],
        "fees_maker": [],
        "fee_volume_currency": "ZUSD",
        "margin_call": 80,
        "margin_stop": 40,
        "ordermin": ordermin,
        "costmin": "0.45" if quote == "EUR" else "0.5",
        "tick_size": f"{Decimal(1).scaleb(-decimals):f}",
        "status": "online",
        "execution_venue": "international",
        **dict(zip(names, limits, strict=False)),
    }


# As listed in autumn 2026; of XBTEUR, ETHUSD and USDTUSD the limits, of BONKUSD all is a guess.
PAIRS: dict[str, dict[str, Any]] = {
    "XXBTZUSD": _pair("XBT", "USD", 1, "0.00005", _UP_TO_10, (350, 250)),
    "XXBTZEUR": _pair("XBT", "EUR", 1, "0.00005", _UP_TO_10, (250, 200)),
    "XETHZUSD": _pair("ETH", "USD", 2, "0.001", _UP_TO_10, (7000, 5000)),
    "SOLUSD": _pair("SOL", "USD", 2, "0.06", _UP_TO_10, (37000, 24000)),
    "USDTZUSD": _pair("USDT", "USD", 5, "5", [2, 3], (5000000, 2500000)),
    "BONKUSD": _pair("BONK", "USD", 8, "200000", []),
}

# The price at which a random market begins, in units of the last digit.
FIRST_TICKS = {
    "XXBTZUSD": 816840,
    "XXBTZEUR": 705120,
    "XETHZUSD": 312045,
    "SOLUSD": 18233,
    "USDTZUSD": 99990,
    "BONKUSD": 1450,
}


def _asset(
    altname: str, decimals: int, shown: int, rate: float | None, collateral: float | None = None
) -> dict[str, Any]:
    optional = {"collateral_value": collateral, "margin_rate": rate}
    return {
        "aclass": "currency",
        "altname": altname,
        "decimals": decimals,
        "display_decimals": shown,
        **{name: value for name, value in optional.items() if value is not None},
        "status": "enabled",
    }


# `margin_rate` is in percent, for opening and for each 4 h, of what is lent; BONK is not.
ASSETS: dict[str, dict[str, Any]] = {
    "ZUSD": _asset("USD", 4, 2, 0.025, 1),
    "ZEUR": _asset("EUR", 4, 2, 0.02, 1),
    "USDT": _asset("USDT", 8, 4, 0.02, 0.9),
    "XXBT": _asset("XBT", 10, 5, 0.01),
    "XETH": _asset("ETH", 10, 5, 0.02),
    "SOL": _asset("SOL", 10, 5, 0.02),
    "BONK": _asset("BONK", 4, 2, None),
}
MARGIN_RATES = {
    code: Decimal(str(row["margin_rate"])) / 100
    for code, row in ASSETS.items()
    if "margin_rate" in row
}


def aliases(key: str, row: dict[str, Any]) -> set[str]:
    """Return all the names of a pair; Kraken's REST methods know its XBT/USD as BTC/USD only."""
    modern = row["wsname"].replace("XBT/", "BTC/")
    return {key, row["altname"], row["wsname"], modern, modern.replace("/", "")}


def unlisted(altname: str, decimals: int) -> tuple[str, dict[str, Any]]:
    """Return key and row for a pair outside the table, so that any file of candles can be run."""
    for quote in ("USDT", "USDC", "USD", "EUR", "GBP"):
        base = altname.removesuffix(quote)
        if base not in ("", altname):
            ordermin = "0.00005" if base == "XBT" else "0.01"
            limits = (1000000, 1000000)
            return altname, _pair(base, quote, decimals, ordermin, _UP_TO_10, limits)
    raise ValueError(f"{altname}: not a pair in USD, EUR, GBP, USDT or USDC")
