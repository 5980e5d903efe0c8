"""The memo: expensive results for single rows (an embedding, a score, a label), remembered by content.

    $STORE/.memo/<stage>-<digest>/<segment>.arrow

The digest covers what a value depends on beside the row: code and parameters, but not the input that the row came in; a
model that is an input adds its own. So when rows are added to a source, only they are computed, and a row is paid for
once, whatever dataset it turns up in. A segment is one Arrow file, put in place by a rename and never changed; a value
is taken out of it without reading the rest. Deleting the folder loses time and nothing else.

What is computed for a row must not depend on its neighbours: alone, in a full batch and out of the memo it has the
same bits.
"""

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.ids import sortable
from infra.failpoint import failpoint

KEY = "content_id"

Contents = npt.NDArray[np.bytes_]  # 16 bytes each


class Index(NamedTuple):
    """Where each remembered content is: contents sorted, with their segment and their place in it."""

    contents: Contents  # (n,)
    segments: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    files: list[Path]

    def find(self, contents: Contents) -> npt.NDArray[np.int64]:
        """Find contents (m,): (m,) positions in the index, -1 where one is not remembered."""
        if not len(self.contents):
            return np.full(len(contents), -1)
        at = np.minimum(np.searchsorted(self.contents, contents), len(self.contents) - 1)
        found: npt.NDArray[np.int64] = np.where(self.contents[at] == contents, at, -1)
        return found


@dataclass(frozen=True)
class Memo:
    """The remembered results of one computation: a folder of segments."""

    folder: Path

    def of(self, digest: str) -> "Memo":
        """Point at the results of the same computation that also depend on what has this digest."""
        return Memo(self.folder.with_name(f"{self.folder.name}-{digest[:32]}"))

    def index(self) -> Index:
        """Look through all segments; a broken one (a full disk, a lost write) is removed."""
        files, contents = [], []
        for file in sorted(self.folder.glob("*.arrow")):
            try:
                column = _open(file)[KEY].combine_chunks()
            except (pa.ArrowInvalid, OSError, KeyError):
                file.unlink(missing_ok=True)
                continue
            files.append(file)
            contents.append(sortable(column))
        whole = np.concatenate(contents) if contents else np.empty(0, "S16")
        segments = np.repeat(np.arange(len(files)), [len(each) for each in contents])
        places = np.concatenate([np.arange(len(each)) for each in contents]) if contents else np.empty(0, np.int64)
        order = np.argsort(whole, kind="stable")
        return Index(whole[order], segments[order], places[order], files)

    def add(self, values: pa.Table) -> None:
        """Remember values: a table whose first column is the content id (uuid), each content once."""
        digest = blake2b(sortable(values[KEY].combine_chunks()).tobytes(), digest_size=16).hexdigest()
        target = self.folder / f"{digest}.arrow"
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, values.schema) as writer:
            writer.write_table(values.combine_chunks())
        failpoint("memo")
        partial.rename(target)

    def take(self, index: Index, contents: Contents) -> pa.Table:
        """Take the values of remembered contents, in their order; the first column is the content id."""
        at = index.find(contents)
        segments, places = index.segments[at], index.places[at]
        order = np.argsort(segments, kind="stable")
        parts = [
            _open(index.files[segment]).take(pa.array(places[order][segments[order] == segment]))
            for segment in np.unique(segments)
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).combine_chunks().take(pa.array(back))


def _open(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()
