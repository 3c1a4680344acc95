"""`build`: the whole program in one file, the same bytes each time it is built."""

import argparse
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

EXAMPLE = "krakenbot build --output krakenbot.pyz && python3 -I -S krakenbot.pyz demo"
DOOR = b"import sys\n\nfrom krakenbot.cli import main\n\nsys.exit(main())\n"
NEVER = (1980, 1, 1, 0, 0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("krakenbot.pyz"), metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    archive = packed()
    output: Path = arguments.output
    # The program may be running from the very file that it replaces.
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            file.write(archive)
        beside.replace(output)
    except OSError as error:
        beside.unlink(missing_ok=True)
        print(f"krakenbot build: cannot write {output}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{hashlib.sha256(archive).hexdigest()}  {output}")
    return 0


def packed() -> bytes:
    """Return the archive: sources, sorted, without the times and compression that would differ."""
    files = {"__main__.py": DOOR, **dict(_sources(resources.files("krakenbot"), "krakenbot"))}
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
        elif entry.name.endswith(".py"):
            yield inside, entry.read_bytes()
