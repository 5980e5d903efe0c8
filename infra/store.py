"""The store: published folders, work folders held by a lease, and remembered file digests.

    $STORE/<stage>/<fingerprint>/     published, immutable
    $STORE/.work/<stage>-<fingerprint>/   one per fingerprint: finished shards, checkpoints, the output being made
    $STORE/.work/<stage>-<fingerprint>.lease   who holds it (flock: the kernel frees it when the holder dies)
    $STORE/.memo/<stage>-<key>/       what is remembered of single rows (infra/memo.py)
    $STORE/runs/<run>.json            what each run did
    $STORE/tags/<name>/v<k>.json      names that people gave to artifacts, immutable (data/tags.py)

The rename of a work folder's `out` to its published name is the commit: before it nothing is there, after it
everything is.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from data.artifact import Artifact
from data.errors import BadInput
from data.fingerprint import file_digest
from data.tags import Tag, check_name, find_tag, read_tags
from infra.failpoint import failpoint
from infra.settings import settings

_STAGE = re.compile(r"[a-z][a-z0-9_]*\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True)
class Store:
    """Find, hold and publish artifacts under one folder."""

    root: Path

    def prepare(self) -> None:
        """Make the store's folder and see that it can be written.

        Raises:
            BadInput: it is read-only, full, or no folder.
        """
        with _writing(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise BadInput(
                    f"{self.root}, which is no folder",
                    "a folder for the store",
                    "choose another with --store",
                ) from None
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()

    def folder(self, stage: str, fingerprint: str) -> Path:
        """The folder of an artifact; both names are checked, so that no path can climb out of the store."""
        if not _STAGE.match(stage) or not _FINGERPRINT.match(fingerprint):
            raise BadInput(
                f"{stage}/{fingerprint}",
                "a stage's name and 32 hex digits",
                "use `stillhouse sql` to list artifacts",
            )
        return self.root / stage / fingerprint

    def memo(self, stage: str, key: str) -> Path:
        """The folder of what is remembered of single rows by a stage, under all of its key but the inputs."""
        return self.root / ".memo" / self.folder(stage, key).relative_to(self.root).as_posix().replace("/", "-")

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """Return the artifact if it is published."""
        folder = self.folder(stage, fingerprint)
        return Artifact(stage, fingerprint, folder) if (folder / "record.json").exists() else None

    def artifacts(self, stage: str = "*") -> Iterator[Artifact]:
        """Every published artifact, by stage and fingerprint."""
        for record in sorted(self.root.glob(f"{stage}/*/record.json")):
            if _STAGE.match(record.parent.parent.name) and _FINGERPRINT.match(record.parent.name):
                yield Artifact(record.parent.parent.name, record.parent.name, record.parent)

    def resolve(self, name: str) -> Artifact:
        """Find an artifact by a path inside the store, 6 or more first digits of its fingerprint, or a tag.

        `:TABLE` after any of them names one of its tables. A tag is looked for first: `./NAME` is always a path.

        Raises:
            BadInput: none or several fit, the path lies outside the store, or a tag's artifact is gone.
        """
        place, colon, table = name.rpartition(":")
        if colon and _STAGE.match(table):
            return self._resolve(place)[table]
        return self._resolve(name)

    def _resolve(self, name: str) -> Artifact:
        wanted = "a path inside the store, the first 6 or more digits of a fingerprint, or a tag"
        tag = find_tag(self.root, name)
        if tag:
            return self._tagged(tag)
        if "/" in name or Path(name).is_dir():
            inside = self.root / name  # as in `sft/<fingerprint>`, the form that runs record
            path = (inside if (inside / "record.json").exists() else Path(name)).resolve()
            if not path.is_relative_to(self.root.resolve()):
                raise BadInput(f"{name}, outside the store {self.root}", wanted, "name the store with --store")
            found = self.find(path.parent.name, path.name) if _FINGERPRINT.match(path.name) else None
            if found is None or found.path.resolve() != path:
                raise BadInput(
                    f"{name}, which is no published artifact", wanted, "run `stillhouse sql 'FROM artifact'`"
                )
            return found
        fitting = [each for each in self.artifacts() if each.fingerprint.startswith(name)] if len(name) >= 6 else []
        if len(fitting) != 1:
            count = f"{len(fitting)} artifacts" if fitting else "no artifact"
            remedy = "run `stillhouse sql 'FROM artifact'` or `stillhouse tag` to list them"
            raise BadInput(f"{count} for {name!r}", wanted, remedy)
        return fitting[0]

    def _tagged(self, tag: Tag) -> Artifact:
        """The artifact of a tag; it must still be there, with the content that was tagged."""
        artifact = self.find(tag.stage, tag.fingerprint)
        if artifact is None:
            found = f"{tag}, whose artifact {tag.stage}/{tag.fingerprint} is gone"
            remedy = "run its recipe again with the code that made it, or name another version"
            raise BadInput(found, "an artifact that the store holds", remedy)
        if _content(artifact, tag.output) != tag.output_digest:
            found = f"{tag}, whose artifact was made again and has other content than when it was tagged"
            raise BadInput(found, "the content that was tagged", "tag it again: that makes another version")
        return artifact[tag.output] if tag.output else artifact

    def tag(self, artifact: Artifact, name: str, note: str = "") -> Tag:
        """Name an artifact, or the table that it points at: as the next version of a name, which never changes.

        Content that the newest version names already keeps that version.

        Raises:
            BadInput: the name is none that a tag may have, or the store cannot be written.
        """
        check_name(name)
        content = _content(artifact, artifact.output)
        folder = self.root / "tags" / name
        with _writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                newest = next(iter(read_tags(self.root, name)[::-1]), None)
                version = newest.version + 1 if newest else 1
                made = Tag(
                    name, version, artifact.stage, artifact.fingerprint, artifact.output, content, time.time(), note
                )
                if newest and newest.names_the_same(made) and self.find(newest.stage, newest.fingerprint):
                    return newest
                with suppress(FileExistsError):  # another process took this version: look again
                    write_once(folder / f"v{version}.json", made._asdict())
                    return made

    @contextmanager
    def lease(self, stage: str, fingerprint: str, run: str, waiting: Callable[[str], None]) -> Iterator[Path]:
        """Hold the work folder of a fingerprint; wait for another holder, and say for whom.

        A holder that died left its folder: it is taken over as it is. Yields the folder.
        """
        folder = self.root / ".work" / f"{stage}-{fingerprint}"
        with _writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            file = _lock(folder.with_suffix(".lease"), waiting)
        try:
            with _writing(self.root):
                file.truncate(0)
                holder = json.dumps({"run": run, "pid": os.getpid(), "host": socket.gethostname()})
                os.pwrite(file.fileno(), holder.encode(), 0)  # unbuffered: closing must not fail on a full disk
                folder.mkdir(exist_ok=True)
                yield folder
        finally:
            with suppress(OSError):
                folder.rmdir()  # nothing was left to do
            folder.with_suffix(".lease").unlink(missing_ok=True)
            file.close()

    def publish(self, work: Path, stage: str, fingerprint: str) -> Artifact:
        """Publish a work folder's `out` by one rename, then clear the work folder."""
        out, target = work / "out", self.folder(stage, fingerprint)
        for path in sorted(out.rglob("*")):
            if path.is_file():
                _sync(path)
        _sync(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        failpoint("publish")
        out.rename(target)
        _sync(target.parent)
        shutil.rmtree(work, ignore_errors=True)
        return Artifact(stage, fingerprint, target)

    def write_run(self, run: str, content: dict[str, Any]) -> Path:
        """Record what a run did, in `runs/<run>.json`."""
        path = self.root / "runs" / f"{run}.json"
        with _writing(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        return path

    def runs(self) -> list[dict[str, Any]]:
        """All recorded runs, oldest first."""
        return [json.loads(path.read_bytes()) for path in sorted(self.root.glob("runs/*.json"))]


def current_store() -> Store:
    """The store that the settings name."""
    return Store(settings().store.absolute())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented and sorted, under a temporary name and rename it into place."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)


def write_once(path: Path, content: Any) -> None:
    """Write JSON as `write_json` does, under a name that nothing has yet.

    Raises:
        FileExistsError: something has it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(partial, content)
    try:
        path.hardlink_to(partial)  # unlike a rename, a link replaces nothing
    finally:
        partial.unlink()


def _content(artifact: Artifact, output: str | None) -> str:
    """The digest of one table of an artifact, or of all that it holds."""
    digest: str = artifact.record["outputs"][output]["digest"] if output else artifact.record["output_digest"]
    return digest


def remembered_digest(path: Path) -> str:
    """Digest a file, or remember its digest by (path, size, modification time in ns, inode): 64 hex digits."""
    path = path.resolve()
    status = path.stat()
    known = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    root = current_store().root
    if not os.access(root, os.W_OK):
        return file_digest(path)
    query = "SELECT digest FROM digest WHERE path = ? AND size = ? AND mtime = ? AND inode = ?"
    try:
        with closing(sqlite3.connect(root / ".digests.sqlite", timeout=60)) as memo, memo:
            memo.execute("CREATE TABLE IF NOT EXISTS digest (path, size, mtime, inode, digest, PRIMARY KEY (path))")
            row = memo.execute(query, known).fetchone()
            digest = str(row[0]) if row else file_digest(path)
            if not row:
                memo.execute("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?, ?)", (*known, digest))
    except sqlite3.OperationalError:
        return file_digest(path)  # a full disk, say: the memo only saves time
    return digest


def _lock(path: Path, waiting: Callable[[str], None]) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            waiting(file.read() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        # The holder before us unlinks its lease: only a lock on the file that the name still means counts.
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        file.close()


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        if error.filename and not Path(error.filename).absolute().is_relative_to(root):
            raise
        found = f"the store {root} is {'full' if full else 'read-only'} ({error.strerror})"
        remedy = "free some space and run again: what is done stays done" if full else "choose another with --store"
        raise BadInput(found, "a folder that can be written", remedy) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
