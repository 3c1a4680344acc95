"""`build`: the whole program in one file, with the same bytes at each build."""

import argparse
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from krakenbot.commands import write_output

EXAMPLE = "krakenbot build --output bot.pyz && python3 -I -S bot.pyz demo"
KINDS = (".py", ".md", ".toml", ".css", ".js", ".service", ".png")
NEVER = (1980, 1, 1, 0, 0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("krakenbot.pyz"), metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    archive = packed()
    write_output(arguments.output, archive)
    print(f"{hashlib.sha256(archive).hexdigest()}  {arguments.output}")
    return 0


def packed() -> bytes:
    """Return the archive: sorted sources, without times and compression, which would vary."""
    files = dict(_sources(resources.files("krakenbot"), "krakenbot"))
    files["__main__.py"] = files["krakenbot/__main__.py"]
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, NEVER)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, files[name])
    return memory.getvalue()


def _sources(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        inside = f"{path}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry, inside)
        elif entry.name.endswith(KINDS):
            yield inside, entry.read_bytes()
