"""Where each recording lies in the shards of a split."""

import json
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from local_modules.errors import InputError, one_line
from local_modules.files import replacing


class CorruptMember(OSError):
    """A recording whose bytes are not those that were packed."""


class Member(NamedTuple):
    """Offset of a recording in its shard, its size in bytes, and its CRC-32."""

    offset: int
    size: int
    crc32: int

    def read(self, path: Path) -> bytes:
        """The bytes from the shard at `path`.

        Raises
        ------
        CorruptMember
            They are not those that were packed.
        """
        with open(path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size or zlib.crc32(content) != self.crc32:
            raise CorruptMember("its checksum in the shard does not match")
        return content


@dataclass
class Shard:
    """One tar file.

    Arguments
    ---------
    name : str
        Its file name.
    sha256 : str
        Checksum of the whole file.
    members : dict
        The recordings, as `Member`, by utterance ID.
    """

    name: str
    sha256: str
    members: dict[str, Member]


def write_index(path: Path, settings: dict, shards: list[Shard] | None) -> None:
    """Writes the index of a split atomically; without shards, it says that they are
    being packed, and with which settings."""
    rows = None if shards is None else [asdict(shard) for shard in shards]
    with replacing(path) as file:
        json.dump({"settings": settings, "shards": rows}, file)


def read_index(path: Path, name: str) -> tuple[dict, list[Shard] | None]:
    """Reads an index.

    Arguments
    ---------
    path : Path
        The file.
    name : str
        Its name in messages.

    Returns
    -------
    settings : dict
        The settings it was packed with.
    shards : list of Shard | None
        None if they are still being packed.

    Raises
    ------
    InputError
        It can't be read, or is not an index.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, rows = content["settings"], content["shards"]
        if rows is None:
            return settings, None
        shards = [
            Shard(
                row["name"],
                row["sha256"],
                {key: Member(*where) for key, where in row["members"].items()},
            )
            for row in rows
        ]
        # Both become file names.
        for shard in shards:
            if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
                raise ValueError(f"{shard.sha256!r} is not a SHA-256")
            if not re.fullmatch(r"[\w.-]+\.tar", shard.name):
                raise ValueError(f"{shard.name!r} is not the name of a shard")
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{name}: is not an index of shards ({one_line(error)})"
        ) from None
    return settings, shards
