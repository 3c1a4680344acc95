"""Kraken's REST interface: methods by name, and what an answer means.

No order is ever resent here. A read whose nonce was refused is retried with a new one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import urlencode

from krakenbot import __version__, log
from krakenbot.clock import Clock
from krakenbot.errors import Cause, KeyRefusedError, LaterError, RefusedError, UnansweredError
from krakenbot.kraken.counter import RestCounter
from krakenbot.kraken.signing import sign
from krakenbot.kraken.transport import UrllibTransport
from krakenbot.lock import Nonces
from krakenbot.model import Credentials

USER_AGENT = f"krakenbot/{__version__}"

# Private methods that change nothing; all others count as changes. Without `live`, AddOrder is only
# sent with `validate`, and the other changes are not sent at all.
_READS = """Balance BalanceEx TradeBalance CreditLines OpenOrders ClosedOrders QueryOrders
    OrderAmends TradesHistory QueryTrades OpenPositions Ledgers QueryLedgers TradeVolume Level3
    GetApiKeyInfo GetWebSocketsToken ExportStatus RetrieveExport DepositMethods DepositStatus
    WithdrawMethods WithdrawAddresses WithdrawInfo WithdrawStatus ListWalletAccounts
    Earn/Strategies Earn/Allocations Earn/AllocateStatus Earn/DeallocateStatus"""
READS = frozenset(_READS.split())
# What an answer that is not JSON is, by its first bytes.
KINDS = {
    b"\x1f\x8b": "a gzip answer",
    b"PK": "a zip archive",
    b"<": "an HTML page",
    b"{": "a broken or cut text",
}


class Client:
    """Calls Kraken's methods by name. Only the public ones work without credentials and nonces.

    The clock is told when a read begins and ends, so that a signal may interrupt it.
    """

    # The pauses before a read is retried with a new nonce; a minute in all.
    nonce_pauses_s: Sequence[float] = (1, 2, 4, 8, 15, 30)

    def __init__(
        self,
        transport: UrllibTransport,
        base_url: str,
        clock: Clock,
        *,
        credentials: Credentials | None = None,
        nonces: Nonces | None = None,
        live: bool = False,
        counter: RestCounter | None = None,
    ) -> None:
        self._transport, self._base_url, self._clock = transport, base_url, clock
        self._credentials, self._nonces, self._live = credentials, nonces, live
        self._counter = counter or RestCounter(clock)

    def public(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """Return the result of a public method."""
        query = f"?{urlencode(params)}" if params else ""
        answer = self._send(True, "GET", f"/0/public/{method}{query}", {}, None)
        return result_of(method, *answer, now=self._clock.now(), is_public=True)

    def private(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """Return the result of a private method; for RetrieveExport, the bytes of its file.

        When nonces are refused, a change raises LaterError at once, and a read KeyRefusedError
        after retries.
        """
        is_read, params = method in READS, dict(params or {})
        if not is_read and not self._live:
            if method != "AddOrder":
                raise RefusedError(f"{method} changes the account and needs live mode and --live")
            params["validate"] = "true"
        if self._credentials is None or self._nonces is None:
            raise KeyRefusedError(f"{method} needs an API key, but there is none")
        pauses = iter(self.nonce_pauses_s)
        while True:
            try:
                answer = self._ask(method, params, is_read)
                return result_of(method, *answer, now=self._clock.now())
            except LaterError as error:
                if error.cause is not Cause.NONCE:
                    raise
                # One that is not stored here was used: the journal may be an old copy.
                self._nonces.set_mark("refused")
                if not is_read:
                    raise
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise KeyRefusedError(
                        f"Kraken keeps refusing nonces ({error}): another program uses this key, "
                        "or it has seen larger nonces. Give each program its own key",
                    ) from error
                log.warning("nonce refused, retrying in %s s: %s", pause_s, error)
                self._clock.wait(pause_s)

    def _ask(self, method: str, params: Mapping[str, object], is_read: bool) -> tuple[int, bytes]:
        """Send one signed request, once, and return status and body of the answer."""
        assert self._credentials is not None and self._nonces is not None
        self._counter.spend(method)
        nonce = str(self._nonces.next(self._clock.nonce()))
        path = f"/0/private/{method}"
        body = urlencode({**params, "nonce": nonce}).encode()
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "API-Key": self._credentials.key.reveal(),
            "API-Sign": sign(self._credentials.secret, path, nonce, body),
        }
        return self._send(is_read, "POST", path, headers, body)

    def _send(
        self, is_read: bool, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        url, headers = self._base_url + path, headers | {"User-Agent": USER_AGENT}
        try:
            self._clock.read(is_read)
            return self._transport.send(method, url, headers, body)
        finally:
            self._clock.read(False)


def result_of(
    method: str, status: int, body: bytes, *, now: float = float("inf"), is_public: bool = False
) -> Any:
    """Return the result in Kraken's envelope, or raise the error that it reports.

    Anything but such an envelope raises UnansweredError, whatever the HTTP status is. Only
    RetrieveExport is answered by a file, a zip archive.
    """
    is_file = method == "RetrieveExport"
    if is_file and status == 200 and body.startswith(b"PK"):
        return body
    envelope, problem = None, "an answer of unknown form"
    try:
        envelope = parse_json(body)
    except ValueError:
        problem = f"{kind_of(body)} in place of a JSON answer"
    errors = envelope.get("error") if isinstance(envelope, dict) else None
    if envelope and isinstance(errors, list) and all(isinstance(e, str) for e in errors):
        failures = [":".join(map(str.strip, e.split(":"))) for e in errors if not e.startswith("W")]
        if failures:
            raise_verdict(method, failures, now, is_public=is_public)
        for warning in errors:
            log.warning("exchange warns method=%s warning=%s", method, warning)
        if status == 200 and envelope.get("result") is not None and not is_file:
            return envelope["result"]
        problem = "JSON in place of a file" if is_file else "no result"
    wait_s = TOO_MANY_S if status == 429 else 0.0
    raise UnansweredError(f"{method}: HTTP {status} with {problem}", wait_s=wait_s)


def kind_of(body: bytes) -> str:
    """Return in words what kind of answer this is, if it is not JSON."""
    text = body.lstrip()
    kinds = (kind for start, kind in KINDS.items() if text.startswith(start))
    return next(kinds, "another text" if text else "nothing")


def parse_json(body: bytes) -> Any:
    """Return JSON from outside, numbers exact; ValueError if broken, too deep or out of range."""
    try:
        # NaN and Infinity are refused: int() raises ValueError for these words.
        return json.loads(body, parse_float=Decimal, parse_constant=int)
    except (RecursionError, ArithmeticError):
        raise ValueError("JSON nested too deeply, or a number out of range") from None


# Kraken's errors by what the caller should do, matched by their beginnings. The first match counts,
# and of several errors the worst. Source: docs.kraken.com, guide "Errors"; support 360001491786.
UNKNOWN, LOCKOUT, KEY, LATER, REFUSED = range(5)  # The worst first.
VERDICTS = {
    (UNKNOWN, Cause.RATE_LIMIT): "EService:Throttled",
    (LATER, Cause.NONCE): "EAPI:Invalid nonce",
    (LATER, Cause.RATE_LIMIT): "EAPI:Rate limit exceeded"
    "|EOrder:(Rate|Domain rate|Orders|Scheduled orders) limit exceeded",
    (LATER, Cause.LENDING_POOL): "EOrder:Insufficient margin",
    (LATER, Cause.MARKET_STATE): "EService:Market in|EOrder:Post only order",
    (LOCKOUT, Cause.RATE_LIMIT): "EAuth:Rate limit|(EAuth|EGeneral):Too many requests",
    (LOCKOUT, Cause.OTHER): "EGeneral:Temporary lockout",
    (UNKNOWN, Cause.OTHER): "EGeneral:Invalid arguments:cl_ord_id not unique"
    "|EOrder:Reduce only:Position is closed",
    (KEY, Cause.OTHER): "EAPI:|EAuth:|ESession:|EAccount:|EGeneral:Permission denied"
    "|ETrade:Locked|ETrade:User Locked|EOrder:Trading agreement required",
    (REFUSED, Cause.FUNDS): "EOrder:(Insufficient initial margin|Insufficient funds|Positions limit"
    "|Margin (level|allowance|position size)|Cannot open opposing position)",
    (REFUSED, Cause.TOO_SMALL): "(EOrder:(Cost|Order)|EGeneral:Invalid arguments:volume) minimum",
    (REFUSED, Cause.OTHER): "EGeneral:Invalid arguments|EGeneral:Unknown [mM]ethod|EQuery:|EOrder:"
    "|ETrade:Invalid request|EBM:limit exceeded",
}
TOO_MANY_S = 60.0  # After HTTP 429, which Kraken does not document for Spot.
THROTTLED_MAX_S = 300.0
WAITS_S = {Cause.RATE_LIMIT: 15.0, Cause.MARKET_STATE: 60.0, Cause.LENDING_POOL: 60.0}
ADVICE = {
    "EOrder:Reduce only:Non-": "Kraken lets this account only reduce margin positions on this "
    "pair, because of where it is registered; `validate` does not show that. Set leverage = 0, or "
    "ask Kraken's support for margin on it",
    "EOrder:Trading agreement required": "set exchange.trading_agreement = true",
    "EOrder:Insufficient margin": "Kraken itself has nothing left to lend now",
}


def raise_verdict(
    method: str, failures: Sequence[str], now: float, *, is_public: bool = False
) -> NoReturn:
    """Raise the error for a list of Kraken's error strings.

    A public request has neither key nor nonce: what sounds like it is the limit of an address
    (github.com/ccxt/ccxt/issues/20648), or answers another request. A throttled one may be told
    from which unix time on it is accepted again.
    """
    verdict, cause = min(map(_verdict, failures), key=lambda found: found[0])
    advice = {text for start, text in ADVICE.items() if any(f.startswith(start) for f in failures)}
    text, wait_s = f"{method}: {'; '.join([*failures, *sorted(advice)])}", WAITS_S.get(cause, 0.0)
    if named := re.search(r"EService:Throttled:(\d{1,12})\b", text):
        wait_s = min(max(wait_s, int(named[1]) - now), THROTTLED_MAX_S)
    if is_public and verdict in (KEY, LOCKOUT):
        raise LaterError(text, cause=Cause.RATE_LIMIT, wait_s=TOO_MANY_S)
    if verdict == UNKNOWN or (is_public and cause is Cause.NONCE):
        raise UnansweredError(text, wait_s=wait_s)
    if verdict in (KEY, LOCKOUT):
        text = f"Kraken refused the key or the account: {text}"
        is_limit = cause is Cause.RATE_LIMIT
        raise KeyRefusedError(text, lockout=verdict == LOCKOUT, rate_limited=is_limit)
    if verdict == LATER:
        is_documented = all(failure.startswith("EOrder:") for failure in failures)
        raise LaterError(text, cause=cause, wait_s=wait_s, leaves_no_order=is_documented)
    raise RefusedError(text, cause=cause)


def _verdict(failure: str) -> tuple[int, Cause]:
    found = (verdict for verdict, texts in VERDICTS.items() if re.match(texts, failure))
    return next(found, (UNKNOWN, Cause.OTHER))
