"""The journal that a command means, found without asking the exchange."""

import os
from contextlib import suppress
from pathlib import Path

from krakenbot.config import Config
from krakenbot.config_reader import journals_in
from krakenbot.credentials import load_credentials
from krakenbot.errors import ConfigError
from krakenbot.identity import Identity, bare, holding, place_of, recall, spelled
from krakenbot.kraken.signing import fingerprint
from krakenbot.pairs import plain
from krakenbot.presence import is_locked

HOME_STATE = ".local/state/krakenbot"
SERVICE_STATE = Path("/var/lib/krakenbot")


def find(config: Config) -> Path | None:
    """Return the path of this configuration's journal without asking the exchange, or None.

    Raises StopError when several match, ConfigError when the folder cannot be read.
    """
    account = ""
    with suppress(ConfigError):  # Commands that only read may lack access to the keys.
        credentials = load_credentials(config) if config.mode != "paper" else None
        if credentials is not None:
            account = recall(config, "account", fingerprint(credentials.key))
    pair = recall(config, "pair", config.pair) or bare(spelled(config.pair))
    path = place_of(config, Identity(pair, account))
    return path if os.path.lexists(path) else None


def journal_path(config: Config) -> Path:
    """Return the path of the existing journal.

    Without one, the ConfigError says what other settings have left held, and names their journals.
    """
    path = find(config)
    if path is not None:
        return path
    home = Path(os.environ.get("HOME") or "/")
    folders = dict.fromkeys((config.state_directory, home / HOME_STATE, SERVICE_STATE))
    others = [f"\n  {file}" for folder in folders for file in journals_in(folder)]
    hint = "".join(f"\n{text}" for text in unmanaged(config, Path()))
    if others:
        hint += f"\nJournals of other settings (--config FILE):{''.join(others[:10])}"
    elif os.geteuid() != 0 and os.path.lexists(SERVICE_STATE):
        hint = f". A service's are in {SERVICE_STATE}: try sudo, and --config with its file"
    raise ConfigError(
        f"there is no {config.mode} journal of {config.pair} in {config.state_directory} yet: "
        f"this bot has not run here{hint}"
    )


def unmanaged(config: Config, own: Path) -> list[str]:
    """Return a sentence on each live journal but `own` that holds something without a bot on it.

    This happens after a change of `pair`, `mode` or the key's account.
    """
    texts = []
    for path, pair, held in holding(config._replace(mode="live")):
        if path == own or is_locked(path.with_suffix(".lock")):
            continue
        what = f"an order on {pair} is unresolved"
        if held:
            what = f"{plain(held)} {pair} is still held"
        texts.append(
            f"{what}, and no bot manages it: with pair = {pair} and mode = live, `krakenbot "
            "flatten --live` closes it; if it is closed already, `krakenbot adopt` records that "
            f"({path.name})"
        )
    return texts
