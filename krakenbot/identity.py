"""Which journal belongs to which pair and account, by the exchange's own ids, not by spelling.

These ids are kept in `index.jsonl` in the state directory, so that commands without network find
the same journal: the pair that a spelling means, the account of a key, and pair and account of
each journal. Journals of 0.2.0 have only a spelling in their names.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from krakenbot.config import Config
from krakenbot.errors import ConfigError, StopError
from krakenbot.journal import Journal
from krakenbot.journal_file import open_read_only
from krakenbot.kraken.signing import fingerprint
from krakenbot.lock import Lock, no_access, open_private
from krakenbot.model import Secret

# JSON objects, one a line; the last entry of a key counts. Up to 0.3.7 there was one object.
INDEX, FORMER_INDEX = "index.jsonl", "index.json"


class Identity(NamedTuple):
    """`pair` is the exchange's own id, `account` twelve hex digits, or empty: unknown, or paper."""

    pair: str
    account: str = ""


def account_name(text: str) -> str:
    """Return an account's short name for files; an empty text for an unknown account."""
    bare = "".join(text.split())
    return fingerprint(Secret(bare)) if bare else ""


def recall(config: Config, kind: str, name: str) -> str:
    """Return what is stored under `kind` ("pair", "account" or "journal") and name, or ""."""
    index = dict[str, object]()
    for file in (FORMER_INDEX, INDEX):
        with suppress(OSError):
            text = (config.state_directory / file).read_text(encoding="utf-8", errors="replace")
            for entries in text.splitlines() if file == INDEX else [text]:
                with suppress(ValueError, TypeError):  # Half of one, after a power failure.
                    index |= json.loads(entries)
    return str(index.get(_entry(config, kind, name), ""))


def remember(config: Config, kind: str, name: str, value: str) -> None:
    """Store a value for `recall`; ConfigError when that fails.

    It is appended, so bots that start at the same time lose nothing. A power failure may lose it:
    then the exchange is asked again.
    """
    if recall(config, kind, name) == value:
        return
    path, entry = config.state_directory / INDEX, {_entry(config, kind, name): value}
    try:
        with open(open_private(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(entry)}")
    except OSError as error:
        raise no_access(path, f"{path} cannot be written", error) from error


def _entry(config: Config, kind: str, name: str) -> str:
    return f"{kind} {_host(config)} {spelled(name) if kind == 'pair' else name}"


def spelled(pair: str) -> str:
    """Return one spelling for BTC/USD, xbtusd and XBTUSD. Kraken calls DOGE XDG."""
    return pair.upper().replace("/", "").replace("BTC", "XBT").replace("DOGE", "XDG")


def place_of(config: Config, identity: Identity) -> Path:
    """Return the path of the identity's journal, whether it exists already or not.

    Raises StopError when several match.
    """
    ours = [
        path
        for path, (pair, account) in _known(config)
        if pair == identity.pair and (not account or identity.account in ("", account))
    ]
    there = [path for path in ours if os.path.lexists(path)]
    if len(there) > 1:
        listed = "".join(f"\n  {path} records {_held(path)}" for path in there)
        raise StopError(
            f"several journals match {config.pair}:{listed}\nNothing was sent. Check at the "
            "exchange what is held, keep the journal that records it, and move the others to "
            "another folder"
        )
    if there or ours:  # A lost journal leaves its lock file behind.
        return (there or ours)[0]
    account = f"-{identity.account}" if identity.account else ""
    return config.state_directory / f"{_prefix(config)}{bare(identity.pair)}{account}.db"


def claim(config: Config, journal: Journal, path: Path, identity: Identity) -> None:
    """Record the journal's pair and account in it and the index; StopError if they differ."""
    known = Identity(journal.get("pair_id"), journal.get("account"))
    if any(theirs not in ("", ours) for theirs, ours in zip(known, identity, strict=True)):
        was, now = (
            f"pair {one.pair or 'unknown'}, account {one.account or 'unknown'}"
            for one in (known, identity)
        )
        raise StopError(
            f"the journal {path} is of {was}; the exchange now says {now}. Nothing was sent. Use "
            "the key and pair it was made with, or another state.directory"
        )
    if known != identity:
        journal.put(pair_id=identity.pair, account=identity.account)
    remember(config, "journal", path.stem, " ".join(identity))


def key_lock(config: Config, key: str, by_bot: bool = False) -> Lock:
    """Return the lock of the API key with this fingerprint, held on this whole machine."""
    path = config.state_directory / f"key-{key}.lock"
    return Lock(path, "this API key", f"{_host(config)} {key}", by_bot=by_bot)


def holding(config: Config) -> Iterator[tuple[Path, str, Decimal]]:
    """Yield path, pair and what is held of each journal with a position, or an unresolved order."""
    for path, (pair, _) in _known(config):
        with suppress(ConfigError, StopError), closing(open_read_only(path)) as journal:
            held = journal.account().held
            if held or journal.open_intents():
                yield path, pair, held


def _known(config: Config) -> Iterator[tuple[Path, Identity]]:
    """Yield path and identity of each journal of this mode and exchange, also of lost ones."""
    folder, prefix = config.state_directory, _prefix(config)
    try:
        names = [*folder.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        what = f"the state directory {folder} cannot be read"
        raise no_access(folder, what, error) from error
    stems = {name.stem for name in names if name.suffix in (".db", ".lock")}
    for stem in sorted(stem for stem in stems if stem.startswith(prefix)):
        pair, _, account = recall(config, "journal", stem).partition(" ")
        if not pair:  # Only its name is known. 0.2.0 named it by the spelling in the settings.
            spelling, _, account = stem.removeprefix(prefix).partition("-")
            pair = recall(config, "pair", spelling) or spelled(spelling)
        yield folder / f"{stem}.db", Identity(pair, account)


def _held(path: Path) -> str:
    try:
        with closing(open_read_only(path)) as journal:
            return str(journal.account().held)
    except (ConfigError, StopError) as error:
        return f"nothing that can be read: {error}"


def _prefix(config: Config) -> str:
    return bare(f"{config.mode}-{_host(config)}") + "-"


def _host(config: Config) -> str:
    host = config.exchange.url.partition("://")[2].lower()
    return host.removesuffix(":443").removesuffix(".")


def bare(text: str) -> str:
    """Return the text in a form that suits a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)
