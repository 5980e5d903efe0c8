"""Tags: names that people give to artifacts, in versions that never change.

    $STORE/tags/<name>/v<k>.json      name, version, stage, fingerprint, output, output_digest, made, note

`name@v3` means one artifact, or one table of it, for ever; `name` means the newest version. A name can not be taken
for the first digits of a fingerprint or of a row id, so that no artifact that is made later changes what it means.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from data.errors import BadInput

LONGEST = 100  # characters of a name
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_DIGITS = re.compile(r"([0-9a-f]{6,}|[0-9a-f]{8}-[0-9a-f-]*)\Z")
_VERSION = re.compile(r"v([1-9][0-9]*)\Z")


class Tag(NamedTuple):
    """One version of a name: which artifact, or which table of it, and its digest at the time."""

    name: str
    version: int
    stage: str
    fingerprint: str
    output: str | None
    output_digest: str
    made: float  # seconds since 1970
    note: str

    def __str__(self) -> str:
        return f"{self.name}@v{self.version}"

    def names_the_same(self, other: "Tag") -> bool:
        """Whether both name the same content of the same stage, in whichever folder it was published."""
        ours, theirs = ((each.stage, each.output, each.output_digest) for each in (self, other))
        return ours == theirs


def check_name(name: str) -> str:
    """Return a name that a tag may have.

    Raises:
        BadInput: it has other characters, is too long, or could be the first digits of a fingerprint or a row id.
    """
    wanted = f"lower-case letters, digits, `-`, `_` and `.`, at most {LONGEST}, the first a letter or a digit"
    if len(name) > LONGEST or not _NAME.match(name):
        raise BadInput(f"the tag {name[: LONGEST + 1]!r}", wanted, "choose another name")
    if _DIGITS.match(name):
        found = f"the tag {name!r}, which could be the first digits of a fingerprint or a row id"
        raise BadInput(found, "a name that nobody can mistake", "put a letter beyond f, `_` or `.` into it")
    return name


def read_tags(store: Path, name: str = "*") -> list[Tag]:
    """Read the tags of a store, or those of one name: by name, the oldest version first."""
    files = (path for path in store.glob(f"tags/{name}/v*.json") if _VERSION.match(path.stem))
    return sorted(Tag(**json.loads(path.read_bytes())) for path in files)


def find_tag(store: Path, name: str) -> Tag | None:
    """Find what NAME (the newest version) or NAME@vK means; None if nothing has that name.

    Raises:
        BadInput: the name is there, the version is not.
    """
    plain, at, version = name.partition("@")
    if len(plain) > LONGEST or not _NAME.match(plain):
        return None
    tags = read_tags(store, plain)
    if not tags or not at:
        return tags[-1] if tags else None
    number = _VERSION.match(version)
    found = next((tag for tag in tags if number and tag.version == int(number[1])), None)
    if found is None:
        there = ", ".join(str(tag) for tag in tags[-5:])
        raise BadInput(f"no version {version!r} of the tag {plain!r}", f"{plain}@vK, such as {there}", "correct it")
    return found
