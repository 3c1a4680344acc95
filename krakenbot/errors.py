"""The errors. Each stands for one thing that a caller does about it."""

from enum import Enum


class Cause(Enum):
    """Why the exchange does not do something now, as far as a caller treats it differently."""

    UNREACHABLE = "no byte of the request left this machine"
    RATE_LIMIT = "too many requests or orders"
    MARKET_STATE = "the market does not take such orders now"
    LENDING_POOL = "the exchange has nothing left to lend"
    FUNDS = "the account's free margin or balance is too small"
    NONCE = "the nonce was not above the last one"
    OTHER = "other"


class ConfigError(Exception):
    """The configuration or the surroundings must be mended first. Exit code 78."""


class ExchangeError(Exception):
    """The exchange did not do what was asked of it, whatever that means: one of the next three."""


class RefusedError(ExchangeError):
    """The exchange said no for good: asking again is pointless. An order is looked for first."""

    def __init__(self, message: str, *, cause: Cause = Cause.OTHER) -> None:
        super().__init__(message)
        self.cause = cause


class LaterError(ExchangeError):
    """The exchange did not do it now; the same may work later.

    `wait_s` is the shortest wait that makes sense. `leaves_no_order`: Kraken documents that this
    refusal leaves no order behind; without it an order may exist all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: Cause = Cause.OTHER,
        wait_s: float = 1.0,
        leaves_no_order: bool = False,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.wait_s = wait_s
        self.leaves_no_order = leaves_no_order


class UnansweredError(ExchangeError):
    """No answer that can be understood: what was asked for may have happened or not."""


class FlattenRequestedError(Exception):
    """A person asks the running bot to flatten. Raised by waiting, as a request to stop is."""


class StopError(Exception):
    """A person must look. The process ends with `exit_code`: 76 safety stop, 77 key refused."""

    def __init__(self, message: str, exit_code: int = 76) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class KeyRefusedError(StopError):
    """The exchange refused the key, a permission of it, or the account. Nothing was executed.

    `lockout`: each further private request prolongs it. `nonce`: nonces stayed refused for a
    minute, so another program uses the key. `lasting`: asking again later is no use.
    """

    def __init__(self, message: str, *, lockout: bool = False, nonce: bool = False) -> None:
        super().__init__(message, 77)
        self.lockout = lockout
        self.nonce = nonce
        self.lasting = False
