"""`unit`: a systemd unit for this installation, shut off from all that a bot does not need."""

import argparse
import os
import sys
from pathlib import Path

from krakenbot import config as configuration
from krakenbot.config import Config

EXAMPLE = "krakenbot --config /etc/krakenbot/config.toml unit"
FOLDER = "/etc/krakenbot"
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
SLOW_START_S = 600  # On top of `exchange.patience`: settling what the last run left open.
ON = """DynamicUser LockPersonality MemoryDenyWriteExecute NoNewPrivileges PrivateDevices PrivateIPC
PrivateMounts PrivateTmp PrivateUsers ProtectClock ProtectControlGroups ProtectHome ProtectHostname
ProtectKernelLogs ProtectKernelModules ProtectKernelTunables RemoveIPC RestrictNamespaces
RestrictRealtime RestrictSUIDSGID"""
# All units share one user, hence one folder of journals and key locks. The watchdog's time is far
# above the longest that the bot goes without a sign of life. After wrong usage, a safety stop, a
# refused key or a bad configuration a person must look first.
UNIT = """\
# /etc/systemd/system/{name}.service, made by `krakenbot unit`
[Unit]
Description=krakenbot, {what}
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} --config ${{CREDENTIALS_DIRECTORY}}/config.toml run{live}
{credentials}StateDirectory=krakenbot
StateDirectoryMode=0700
TimeoutStartSec={start_s:.0f}
WatchdogSec=600
Restart=on-failure
RestartSec=30
RestartPreventExitStatus=2 76 77 78
User=krakenbot
UMask=0077
CapabilityBoundingSet=
DevicePolicy=closed
IPAddressDeny=multicast
KeyringMode=private
LimitCORE=0
MemoryMax=256M
ProcSubset=pid
ProtectProc=invisible
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SocketBindDeny=any
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
TasksMax=16
{on}

[Install]
WantedBy=multi-user.target
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"one unit for several pairs: krakenbot@NAME runs {FOLDER}/NAME.toml"
    parser.add_argument("--template", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    config = configuration.load_here(arguments.config)
    for path in (sys.executable, str(home())):
        if path.startswith(HIDDEN):
            print(
                f"krakenbot unit: the unit cannot see {path}; install the program under /opt and "
                "run `unit` from there with /usr/bin/python3",
                file=sys.stderr,
            )
    here = "config.toml" if os.path.exists("config.toml") else f"{FOLDER}/config.toml"
    file = os.path.abspath(arguments.config or os.environ.get("KRAKENBOT_CONFIG") or here)
    print(unit(config, file, arguments.template), end="")
    return 0


def unit(config: Config, file: str, template: bool) -> str:
    """Return the unit's text; `file` is the configuration, which only root needs to read."""
    sources = {"config.toml": f"{FOLDER}/%i.toml" if template else file.replace("%", "%%")}
    if config.mode != "paper":
        for name in ("kraken_api_key", "kraken_api_secret"):
            sources[name] = f"{FOLDER}/{'%i.' if template else ''}{name}"
    return UNIT.format(
        name="krakenbot@" if template else "krakenbot",
        what="%i" if template else f"{config.mode} {config.pair}",
        program=_program(),
        live=" --live" if config.mode == "live" else "",
        credentials="".join(f"LoadCredential={key}:{at}\n" for key, at in sources.items()),
        start_s=config.exchange.patience + SLOW_START_S,
        on="\n".join(f"{name}=yes" for name in ON.split()),
    )


def home() -> Path:
    """Return the single file, or the folder in which the package lies."""
    return Path(__file__).absolute().parents[2]


def _program() -> str:
    """Return the command that runs this very program without looking elsewhere for code."""
    python, place = (_quoted(str(path)) for path in (sys.executable, home()))
    if home().is_file():
        return f"{python} -I -S {place}"
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from krakenbot.cli import main"
    return f"{python} -I -S -c '{start}; sys.exit(main())' {place}"


def _quoted(path: str) -> str:
    """Return a path as systemd reads it: a percent sign begins a specifier, a dollar a variable."""
    path = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{path}"' if set(path) & set(" '\"\\;") else path
