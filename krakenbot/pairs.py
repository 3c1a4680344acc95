"""What Kraken allows on one pair, and the only place where volumes are rounded."""

from collections.abc import Callable, Iterable, Mapping
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from typing import Any, NamedTuple

from krakenbot.model import ZERO, Side


class PairRules(NamedTuple):
    """One entry of AssetPairs. `pair` is Kraken's internal name, `altname` the one to send.

    `ordermin` is in base, `costmin` in quote currency; `leverage_buy` and `leverage_sell` are
    empty if the pair has no margin on that side; `margin_stop` is percent; position limits are in
    base, None if unknown. Source: docs.kraken.com, "Get Tradable Asset Pairs".
    """

    pair: str
    altname: str
    base: str
    quote: str
    lot_decimals: int
    pair_decimals: int
    ordermin: Decimal
    status: str = "online"
    cost_decimals: int = 8
    costmin: Decimal = ZERO
    leverage_buy: tuple[int, ...] = ()
    leverage_sell: tuple[int, ...] = ()
    margin_stop: Decimal = Decimal(40)
    long_position_limit: Decimal | None = None
    short_position_limit: Decimal | None = None

    def leverages(self, side: Side) -> tuple[int, ...]:
        return self.leverage_buy if side is Side.BUY else self.leverage_sell

    def round_volume(self, volume: Decimal) -> Decimal:
        """Return the volume cut to the pair's lot decimals, towards zero."""
        return volume.quantize(Decimal(1).scaleb(-self.lot_decimals), rounding=ROUND_DOWN)


def parse_rules(pair: str, row: Mapping[str, Any]) -> PairRules:
    """Return the rules in one AssetPairs entry.

    Raises ValueError, naming the pair, when it is not of the expected shape.
    """
    try:
        # A field's type says how it is read; one that is missing keeps its default, and so does one
        # that is null. But a status that is null is not "online".
        given = {
            name: _READERS[kind](row[name])
            for name, kind in PairRules.__annotations__.items()
            if row.get(name) not in (None, "") or (name == "status" and name in row)
        }
        given["margin_stop"] = given.get("margin_stop") or Decimal(40)
        rules = PairRules(**given | {"pair": pair})
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"AssetPairs entry {pair!r} is not as expected: {error!r}") from error
    if rules.ordermin < ZERO or rules.costmin < ZERO:
        raise ValueError(f"AssetPairs entry {pair!r} has a negative minimum")
    return rules


def decimal(value: object) -> Decimal:
    """Return an outside number (text, int or Decimal) as a finite Decimal; else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise ValueError(f"not a number: {value!r:.40}")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"not a number: {value!r:.40}") from None
    # Kraken's numbers have at most some twenty digits; a huge exponent would cost memory later.
    if not number.is_finite() or abs(number.adjusted()) > 30:
        raise ValueError(f"not a usable number: {value!r:.40}")
    return number


def plain(number: Decimal) -> str:
    """Return the number as Kraken wants it: fixed point, no exponent, no needless zeros."""
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _digits(value: object) -> int:
    digits = decimal(value)
    if not 0 <= digits <= 18 or digits != int(digits):
        raise ValueError(f"{digits} is not a number of decimals")
    return int(digits)


def _leverages(values: Iterable[object]) -> tuple[int, ...]:
    """Return the whole numbers in a list of leverages; others are not supported here."""
    numbers = map(decimal, values)
    return tuple(int(number) for number in numbers if number == int(number) and number > 0)


_READERS: dict[object, Callable[[Any], Any]] = {
    str: str,
    int: _digits,
    Decimal: decimal,
    Decimal | None: decimal,
    tuple[int, ...]: _leverages,
}


def earn_balances(balances: Mapping[str, Decimal], base: str) -> dict[str, Decimal]:
    """Return the asset's balances in Kraken's Earn, staked or bonded, by asset code.

    Auto-earn moves XXBT to XBT.F. Source: docs.kraken.com, Balance: suffixes .B .F .M .P .S .T.
    """
    names = {base, base[1:] if len(base) == 4 and base[0] in "XZ" else base}
    found = {}
    for code, amount in balances.items():
        name, _, kind = code.partition(".")
        if amount and kind in ("B", "F", "M", "P", "S") and name.rstrip("0123456789") in names:
            found[code] = amount
    return found
