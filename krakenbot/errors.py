"""The five errors. Each stands for one thing that a caller does about it."""


class ConfigError(Exception):
    """The configuration or the surroundings must be mended first. Exit code 78."""


class RefusedError(Exception):
    """The exchange said no for good: nothing was executed, asking again is pointless."""


class LaterError(Exception):
    """Nothing was executed now; the same may work later.

    `sent` is False when provably no byte of the request left this machine. `wait_s` is the
    shortest wait that makes sense.
    """

    def __init__(self, message: str, *, sent: bool = True, wait_s: float = 1.0) -> None:
        super().__init__(message)
        self.sent = sent
        self.wait_s = wait_s


class UnansweredError(Exception):
    """No answer that can be understood: what was asked for may have happened or not."""


class StopError(Exception):
    """A person must look. The process ends with `exit_code`: 76 safety stop, 77 key refused."""

    def __init__(self, message: str, exit_code: int = 76) -> None:
        super().__init__(message)
        self.exit_code = exit_code
