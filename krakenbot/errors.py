"""The errors, one type for each thing that a caller may do about one."""

from enum import Enum


class Cause(Enum):
    """Why a request failed, as far as callers act differently on it."""

    UNREACHABLE = "no byte of the request left this machine"
    RATE_LIMIT = "too many requests or orders"
    MARKET_STATE = "the market does not take such orders now"
    LENDING_POOL = "the exchange has nothing left to lend"
    TOO_SMALL = "the order is below the smallest volume or cost"
    FUNDS = "too little free margin or balance, or too much is held already"
    NONCE = "the nonce was not above the last one"
    OTHER = "other"


class ConfigError(Exception):
    """The configuration or the environment must be fixed first."""

    exit_code = 78


class HeldError(ConfigError):
    """Another process holds a lock. `bot` says which one if it is a bot, not a short command."""

    def __init__(self, message: str, bot: str = "") -> None:
        super().__init__(message)
        self.bot = bot


class ExchangeError(Exception):
    """The exchange did not do what was asked: always one of the next three types.

    `wait_s` is the shortest sensible pause in seconds before the next request.
    `leaves_no_order`: Kraken documents that this refusal leaves no order; if False, an order may
    exist all the same.
    """

    exit_code = 75

    def __init__(
        self,
        message: str,
        *,
        cause: Cause = Cause.OTHER,
        wait_s: float = 0.0,
        leaves_no_order: bool = False,
    ) -> None:
        super().__init__(message)
        self.cause, self.wait_s, self.leaves_no_order = cause, wait_s, leaves_no_order


class RefusedError(ExchangeError):
    """Refused for good: the same request would be refused again. An order is still looked up."""


class LaterError(ExchangeError):
    """A temporary failure: the same request may work later."""


class UnansweredError(ExchangeError):
    """Outcome unknown: no answer, or none that can be understood. It may have happened."""


class StopError(Exception):
    """A person must look. The process ends with `exit_code`: 76 safety stop, 77 key refused."""

    def __init__(self, message: str, exit_code: int = 76) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ContradictionError(StopError):
    """The exchange's own answers contradict each other: several orders have one id."""


class KeyRefusedError(StopError):
    """The exchange refused the key, one of its permissions, or the account.

    An order refused so is looked up all the same. `lockout`: each further private request prolongs
    it. `rate_limited`: a limit of requests, perhaps of other programs, that is not about this key.
    """

    def __init__(self, message: str, *, lockout: bool = False, rate_limited: bool = False) -> None:
        super().__init__(message, 77)
        self.lockout, self.rate_limited = lockout, rate_limited
