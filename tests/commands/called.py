"""A command in this process: its exit code and what it said."""

import contextlib
import io
import os
from typing import NamedTuple
from unittest import mock

from krakenbot import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Terminal(io.StringIO):
    """A stream that a person sees."""

    def isatty(self) -> bool:
        return True


def call(
    *words: str, to: io.StringIO | None = None, err: io.StringIO | None = None, **environ: str
) -> Done:
    """Run the program with these words, and with no variables but these."""
    out, err = to or io.StringIO(), err or io.StringIO()
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli.main(words)
    return Done(code, out.getvalue(), err.getvalue())
