"""map_shards: run a function over shards, in a plain loop or on Ray, with the same bytes either way.

Shards are cut by content, never by the number of workers; each enters the work folder by one rename, so that a
run killed anywhere repeats only the shards that were in flight. A plain loop comes first, since Ray takes seconds
and most of a gigabyte to start: what it has not done in `ray_min_seconds` goes to Ray.
"""

import functools
import importlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifact import read_parquet
from data.contracts import failed_schema
from data.errors import BadInput
from infra import NO_TELEMETRY
from infra.failpoint import failpoint
from infra.progress import progress
from infra.settings import settings

Tables = dict[str, pa.Table]
ShardFunction = Callable[[Any], Tables]
Job = Callable[[Any, Path], bool]  # payload, target -> is it finished

TRANSIENT = "transient"
ACCEPTED = ".accepted"
ROOMS = ("flows", "tasks", "infra", "data")


class Unfinished(Exception):
    """Some rows failed for now (a timeout, a lost worker, a budget): finished shards wait for the next run."""


def write_table(table: pa.Table, path: Path, *, draft: bool = False) -> None:
    """Write Parquet with the one set of settings that every artifact uses; a draft is not compressed.

    A dictionary ends at 64 KiB: enough for labels, while texts and ids, which hardly repeat, soon go without.
    """
    size = {} if draft else {"compression_level": 1}
    pq.write_table(
        table,
        path,
        compression="none" if draft else "zstd",
        row_group_size=10_000,
        dictionary_pagesize_limit=1 << 16,
        **size,
    )


def map_shards(
    function: ShardFunction,
    payloads: Iterable[Any],
    folder: Path,
    *,
    total: int | None = None,
    what: str = "shards",
    gpus: float = 0,
    draft: bool = False,
) -> list[Path]:
    """Run `function(payload)` for every payload and return the folders of their tables, in order.

    Args:
        function: a module's top-level function (or a partial of one): payload -> {table name: table}. A table
            named `transient` (row_id, error, location) tells which rows failed for now.
        payloads: small descriptions of the shards, in order; may be lazy.
        folder: where finished shards stand; those already there are not run again.
        total: number of payloads, if known, for the progress bar.
        what: the bar's label.
        gpus: GPUs that one shard takes on Ray; without them, Ray hides every GPU from it.
        draft: the tables are read and written anew before they are published: no time goes into their size.

    Raises:
        Unfinished: rows failed transiently; everything else is kept for the next run.
        BadInput: whatever bad input the function found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rest in (*folder.glob("*.partial*"), *folder.glob(f"*{ACCEPTED}")):
        shutil.rmtree(rest)
    targets: list[Path] = []

    def pending() -> Iterator[tuple[Any, Path]]:
        for number, payload in enumerate(payloads):
            targets.append(folder / f"{number:05}")
            if not targets[-1].exists():
                yield payload, targets[-1]

    job = functools.partial(_run_shard, function, draft=draft)
    waiting: list[Path] = []
    with progress(what) as advance:
        for done, (target, finished) in enumerate(_run(job, pending(), gpus)):
            advance(len(targets) if total is None else done + 1, total)
            if not finished:
                waiting.append(target)
    if waiting:
        _settle(waiting, succeeded=len(waiting) < len(targets) or any(map(_answered, waiting)))
    return [target if target.exists() else target.with_suffix(ACCEPTED) for target in targets]


def read_shard(shard: Path, table: str) -> pa.Table:
    """Read one table of a finished shard."""
    return read_parquet(shard / f"{table}.parquet").replace_schema_metadata()


def _run(job: Job, pending: Iterator[tuple[Any, Path]], gpus: float) -> Iterator[tuple[Path, bool]]:
    """Yield (target, finished) as shards come in: first here, then on Ray if it takes long and workers are many."""
    options = settings()
    parallel = options.workers > 1 or options.ray_address is not None
    began = time.monotonic()
    with one_thread():
        while not (parallel and time.monotonic() - began >= options.ray_min_seconds):
            payload, target = next(pending, (None, None))
            if target is None:
                return
            yield target, job(payload, target)
    first = next(pending, None)
    if first is not None:
        yield from _run_on_ray(job, itertools.chain([first], pending), options.workers, gpus)


def _run_shard(function: ShardFunction, payload: Any, target: Path, *, draft: bool) -> bool:
    """Compute one shard and put it in place by a rename; False if rows of it failed for now."""
    tables = function(payload)
    transient = tables.get(TRANSIENT)
    finished = transient is None or len(transient) == 0
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, table in tables.items():
        if name != TRANSIENT or not finished:
            write_table(table, partial / f"{name}.parquet", draft=draft)
    failpoint("shard")
    goal = target if finished else target.with_suffix(".waiting")
    if goal.exists():
        shutil.rmtree(goal)
    partial.rename(goal)
    return finished


def _settle(waiting: list[Path], succeeded: bool) -> None:
    """Count the tries of rows that failed for now; those tried often enough, or accepted, become failures.

    A row counts as tried only when others succeeded: if everything fails, the fault is not the row's. A shard with
    accepted failures is used once under another name: it is not finished, and the next run tries its rows again.
    """
    options = settings()
    open_rows, last = 0, ""
    for target in waiting:
        folder = target.with_suffix(".waiting")
        transient = read_shard(folder, TRANSIENT)
        counts_file = target.with_suffix(".tries")
        tries = json.loads(counts_file.read_bytes()) if counts_file.exists() else {}
        ids = [str(each) for each in transient["row_id"].to_pylist()]
        tries = {row: tries.get(row, 0) + succeeded for row in ids}
        counts_file.write_text(json.dumps(tries))
        left = [row for row in ids if tries[row] < options.max_attempts]
        if left and not (options.accept_failed and succeeded):
            open_rows, last = open_rows + len(left), transient["error"][-1].as_py()
            continue
        parts = [name for name in ("failed", TRANSIENT) if (folder / f"{name}.parquet").exists()]
        failed = pa.concat_tables(read_shard(folder, name).cast(failed_schema()) for name in parts)
        write_table(failed, folder / "failed.parquet")
        (folder / f"{TRANSIENT}.parquet").unlink()
        folder.rename(target.with_suffix(ACCEPTED) if left else target)
    if open_rows:
        raise Unfinished(
            f"{open_rows} rows failed for now, the last with: {last}\n"
            "what is finished waits in the work folder: run again to try only the rest, "
            "or with --accept-failed to publish without them"
        )


def _answered(target: Path) -> bool:
    """Say whether some rows of a waiting shard succeeded."""
    tables = target.with_suffix(".waiting").glob("*.parquet")
    files = [pq.ParquetFile(file) for file in tables if file.stem not in ("failed", TRANSIENT)]
    return any(file.metadata.num_rows and "row_id" in file.schema_arrow.names for file in files)


# ---- Ray -------------------------------------------------------------------------------------------------


def _run_on_ray(
    job: Job, pending: Iterator[tuple[Any, Path]], workers: int, gpus: float
) -> Iterator[tuple[Path, bool]]:
    """Run shards on Ray actors, which keep what a function loads (a model) from one shard to the next.

    Each takes its next shard when it is free, so that actors that the cluster has no room for yet hold nothing up.
    A lost actor's shard is tried again by Ray. (Tasks would not do: Ray ends a GPU task's process with the task.)
    """
    import ray

    start_ray(workers)
    tries = settings().max_attempts - 1
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=tries, max_task_retries=tries)(_Worker)
    code = ray.put(job)
    pool = [actor.remote() for _ in range(_pool_size(workers, gpus))]
    flying: dict[Any, tuple[Any, Path | None]] = {each.ready.remote(): (each, None) for each in pool}
    following = next(pending, None)
    try:
        while following is not None or any(target for _, target in flying.values()):
            ready, _ = ray.wait(list(flying), num_returns=1)
            free, target = flying.pop(ready[0])
            outcome = ray.get(ready[0])
            if isinstance(outcome, BadInput):
                raise outcome
            if following is not None:
                flying[free.run.remote(code, *following)] = (free, following[1])
                following = next(pending, None)
            if target is not None:
                yield target, outcome
    finally:
        for each in pool:
            ray.kill(each)


class _Worker:
    """One process of the pool; what its job loads stays in its module's caches."""

    def ready(self) -> None:
        """Answer as soon as the actor has its place."""

    def run(self, job: Job, payload: Any, target: Path) -> "bool | BadInput":
        """Run one shard; bad input is returned as a value, since Ray would wrap it in an exception of its own."""
        try:
            with one_thread():
                return job(payload, target)
        except BadInput as error:
            return error


def _pool_size(workers: int, gpus: float) -> int:
    """Count the actors: as many as the settings say, and where each takes GPUs no more than these suffice for."""
    import ray

    there = int(ray.cluster_resources().get("GPU", 0) / gpus) if gpus else workers
    return max(1, min(workers, there))


def start_ray(workers: int) -> None:
    """Start a local Ray, or connect to the cluster that the settings name; once per process.

    The four rooms travel by name and are the first that a worker imports, so that it never meets another project's
    `data` or `tasks`.
    """
    import ray

    if ray.is_initialized():
        return
    address = settings().ray_address
    root = Path(__file__).resolve().parents[1]
    ray.init(
        address=address,
        num_cpus=None if address else workers,
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={
            "py_modules": [str(root / room) for room in ROOMS],
            "worker_process_setup_hook": f"{__name__}.import_rooms",
            "excludes": ["**/__pycache__"],
            "env_vars": {"OMP_NUM_THREADS": "1", **NO_TELEMETRY},
        },
    )


def import_rooms() -> None:
    """Import the rooms in a new worker, before Ray puts the driver's working directory in front of its path."""
    for room in ROOMS:
        importlib.import_module(room)


def stop_ray() -> None:
    """Stop the local Ray of this process, if one was started."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold the math libraries at one thread, so that a shard's bits do not depend on the machine's cores."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(threads)
