"""@stage: a pure function of (parameters, input artifacts, code) that publishes one folder of the store.

    @stage("exact")
    def clean(work: Work, parameters: CleanParameters, rows: Rows) -> Measures: ...

    cleaned = clean(parameters.clean, loaded)          # in a flow: an Artifact, made now or found in the store

Calling it digests its inputs into a key, answers from the store if that key is published, and otherwise holds the
key's work folder, runs the body, checks that no row was lost, and publishes by one rename. The body is a plain
function (`clean.body`); Prefect and Ray are not needed to call either.
"""

import inspect
import json
import platform
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from pathlib import Path
from typing import Annotated, Any, Concatenate, Generic, Literal, ParamSpec, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from data.artifact import FILES, Artifact, read_parquet
from data.conservation import Balance, conserve
from data.contracts import contract_of, dropped_schema, edges_schema, failed_schema
from data.fingerprint import (
    canonical,
    differences,
    digest_of,
    file_digest,
    files_digest,
    fingerprint_of,
    package_version,
    stage_key,
)
from data.ids import table_digest
from infra.memo import Memo
from infra.progress import say
from infra.settings import settings
from infra.store import Store, current_store, write_json
from infra.work import Work

Measures = dict[str, float]
P = ParamSpec("P")

# How an input is read, said in the body's annotations.
Rows = Annotated[Artifact, "rows"]  # conserved: each of its rows must be kept, consumed, dropped or failed
Reference = Annotated[Artifact, "reference"]  # in the key and the record, its rows not counted
References = Annotated[list[Artifact], "reference"]
Records = Annotated[list[Artifact], "record"]  # read for what they say of themselves: any change of key counts

# In the key of what was published without the rows that still failed for now; what lost none has its usual key.
ACCEPTING = {"accept_failed": True}

_SHARD = re.compile(r"(.+)-\d{5}\.parquet\Z")


class Parameters(BaseModel):
    """Base of every method's parameters: frozen, and a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Pending(Artifact):
    """Stand for an artifact that a plan knows of but that is not made yet."""

    def __getitem__(self, output: str) -> "Pending":
        """Point at one of the outputs that it will have."""
        return replace(self, output=output)


@dataclass
class Step:
    """Say what became of one stage in a run or a plan."""

    stage: str
    fingerprint: str | None
    state: Literal["cached", "done", "to run", "depends"]
    why: list[str]
    artifact: Artifact
    seconds: float = 0.0
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """Collect the steps of one run; `perform` is the seam through which Prefect sees each stage."""

    identity: str
    store: Store
    planning: bool = False
    steps: list[Step] = field(default_factory=list)
    stored: dict[str, dict[str, str | None]] = field(default_factory=dict)  # what it began with (infra/flow.py)
    tagged: str | None = None  # what its dataset is called: name@v3
    perform: Callable[[str, Callable[[], Step]], Step] = lambda name, work: work()
    tell: Callable[[Step], None] = lambda step: None


current_run: ContextVar[Run | None] = ContextVar("run", default=None)


@dataclass(eq=False)
class Stage(Generic[P]):
    """A stage that can be called with parameters and input artifacts (see the module)."""

    name: str
    body: Callable[..., Measures | None]
    determinism: Literal["exact", "float"]
    source: bool
    trains: bool
    reads: Callable[[Any], Mapping[str, Any]] | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Artifact:
        """Return the artifact, made now or found in the store."""
        bound = inspect.signature(self.body).bind(None, *args, **kwargs)
        bound.apply_defaults()
        _, parameters, *_ = bound.arguments.values()
        inputs = dict(list(bound.arguments.items())[2:])
        run = current_run.get() or Run("none", current_store())
        step = self._step(run, parameters, inputs)
        run.steps.append(step)
        run.tell(step)
        return step.artifact

    def _step(self, run: Run, parameters: BaseModel, inputs: dict[str, Any]) -> Step:
        pending = [each.stage for each in _flat(inputs) if isinstance(each, Pending)]
        if pending:
            why = [f"depends on {', '.join(dict.fromkeys(pending))}"]
            return Step(self.name, None, "depends", why, Pending(self.name, "", Path()))
        key = self._key(parameters, inputs)
        fingerprint = fingerprint_of(key)
        found = self._find(run.store, key)
        if found:
            return Step(self.name, found.fingerprint, "cached", [], found, record=found.record)
        why = why_not_cached(run.store, key)
        if run.planning:
            missing = Pending(self.name, fingerprint, run.store.folder(self.name, fingerprint))
            return Step(self.name, fingerprint, "to run", why, missing)
        return run.perform(self.name, lambda: self._make(run, key, parameters, inputs, why))

    def _key(self, parameters: BaseModel, inputs: dict[str, Any]) -> dict[str, Any]:
        kinds = self.kinds()
        digests: dict[str, str | list[str]] = {}
        for name, value in inputs.items():
            each = [_identity(artifact, kinds[name]) for artifact in _flat({name: value})]
            digests[name] = each if isinstance(value, list) else each[0]
        reads = self.reads(parameters) if self.reads else {}
        return stage_key(self.name, self.body.__module__, parameters, digests, reads)

    def _find(self, store: Store, key: dict[str, Any]) -> Artifact | None:
        """Find what the key made; where failures are accepted, also what was published without the failed rows."""
        keys = [key, key | ACCEPTING] if settings().accept_failed else [key]
        found = (store.find(self.name, fingerprint_of(each)) for each in keys)
        return next((artifact for artifact in found if artifact), None)

    def kinds(self) -> dict[str, str]:
        """How each input is read: {argument: rows, reference or record}."""
        hints = get_type_hints(self.body, include_extras=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}

    # ---- making ----

    def _make(
        self, run: Run, key: dict[str, Any], parameters: BaseModel, inputs: dict[str, Any], why: list[str]
    ) -> Step:
        fingerprint = fingerprint_of(key)
        began = time.time()

        def waiting(holder: str) -> None:
            from rich.markup import escape

            say(f"  {self.name}: waiting for {escape(holder)}, which is making the same thing")

        with run.store.lease(self.name, fingerprint, run.identity, waiting) as folder:
            found = self._find(run.store, key)
            if found:
                return Step(
                    self.name,
                    found.fingerprint,
                    "cached",
                    ["made meanwhile by another run"],
                    found,
                    record=found.record,
                )
            work = Work(folder, Memo(run.store.memo(self.name, _memo_key(key))))
            work.begin()
            measures = self.body(work, parameters, *inputs.values()) or {}
            if work.accepted:
                key = key | ACCEPTING
                fingerprint = fingerprint_of(key)
            record = self._record(work.out, key, inputs, measures)
            write_json(work.out / "record.json", record)
            seconds = time.time() - began
            made = {"run": run.identity, "began": began, "seconds": seconds, "host": socket.gethostname()}
            given = parameters.model_dump(mode="json")  # with what no key holds, so that it can be made again
            write_json(work.out / "run.json", {**made, "parameters": given})
            artifact = run.store.publish(folder, self.name, fingerprint)
        return Step(self.name, fingerprint, "done", why, artifact, seconds, record)

    def _record(self, out: Path, key: dict[str, Any], inputs: dict[str, Any], measures: Measures) -> dict[str, Any]:
        kinds = self.kinds()
        outputs = describe_outputs(out)
        balance = self._balance(out, outputs, {name: inputs[name] for name, kind in kinds.items() if kind == "rows"})
        packages = {name: package_version(name) for name in ("pyarrow", "numpy", *key["packages"])}
        return {
            "stage": self.name,
            "fingerprint": fingerprint_of(key),
            "key": key,
            "class": self.determinism,
            "source": self.source,
            "trains": self.trains,
            "inputs": [
                {
                    "name": name, "kind": kinds[name], "stage": each.stage, "fingerprint": each.fingerprint,
                    "output": each.output, "digest": _identity(each, kinds[name]),
                }
                for name, value in inputs.items() for each in _flat({name: value})
            ],
            "outputs": outputs,
            "output_digest": digest_of({name: each["digest"] for name, each in outputs.items()}),
            "measures": canonical({**measures, **balance.__dict__}),
            "packages": {**packages, "python": platform.python_version()},
            **({"environment": _environment()} if self.determinism == "float" else {}),
        }  # fmt: skip

    def _balance(self, out: Path, outputs: dict[str, Any], inputs: dict[str, Artifact]) -> Balance:
        came = {name: _column(artifact.batches(["row_id"]), "row_id") for name, artifact in inputs.items()}
        tables = [name for name, each in outputs.items() if each.get("contract")]
        went = {name: _column(Artifact("", "", out, name).batches(["row_id"]), "row_id") for name in tables}
        edges, dropped, failed = (
            read_parquet(out / f"{name}.parquet") if (out / f"{name}.parquet").exists() else schema.empty_table()
            for name, schema in (
                ("edges", edges_schema()),
                ("dropped", dropped_schema()),
                ("failed", failed_schema()),
            )
        )
        return conserve(came, went, edges, dropped["row_id"], failed["row_id"], source=self.source, trains=self.trains)


def stage(
    determinism: Literal["exact", "float"],
    *,
    source: bool = False,
    trains: bool = False,
    reads: Callable[[Any], Mapping[str, Any]] | None = None,
) -> Callable[[Callable[Concatenate[Work, P], Measures | None]], Stage[P]]:
    """Make a stage of a body `(work, parameters, *inputs) -> measures`; its name is the function's.

    Args:
        determinism: "exact" gives the same bytes anywhere; "float" the same on the same kind of machine.
        source: its rows come from files outside the store.
        trains: it makes a model of all rows of its `Rows` inputs that it does not drop or fail.
        reads: parameters -> digests of what lies outside the store; part of the key.
    """

    def decorate(body: Callable[Concatenate[Work, P], Measures | None]) -> Stage[P]:
        made: Stage[P] = Stage(body.__name__, body, determinism, source, trains, reads)
        update_wrapper(made, body, updated=())
        return made

    return decorate


def why_not_cached(store: Store, key: Mapping[str, Any]) -> list[str]:
    """Say which parts of a key differ from the nearest earlier record of the same stage.

    Of stages that read from outside the store, records that read nothing of the same name tell nothing.
    """
    earlier = [artifact.record["key"] for artifact in store.artifacts(str(key["stage"]))]
    earlier = [old for old in earlier if not key["reads"] or set(old["reads"]) & set(key["reads"])]
    if not earlier:
        return ["never made in this store"]
    nearest = min((list(differences(old, key)) for old in earlier), key=len)
    return [in_words(*difference) for difference in nearest]


def in_words(where: str, old: Any, new: Any) -> str:
    """Say a difference of two keys (data/fingerprint.py) in words."""
    room, _, rest = where.partition("/")
    if room == "code":
        module, _, definition = rest.partition("/")
        change = "is new" if old is None else "is gone" if new is None else "changed"
        return f"code: {module}{f', {definition}' if definition else ''} {change}"
    if room in ("inputs", "reads"):
        return f"{'input' if room == 'inputs' else 'source'} {rest.replace('/', ' ')} changed"
    name = {"parameters": "parameter ", "packages": "package "}.get(room, "") + (rest or room).replace("/", ".")
    return f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def describe_outputs(out: Path) -> dict[str, Any]:
    """Digest everything in an output folder: tables logically, other files by their bytes.

    A table of rows, which has content ids, names its contract; `files` stands for all files that are not tables.
    """
    names = sorted({_table_name(path.name) for path in out.glob("*.parquet")})
    outputs: dict[str, Any] = {}
    for name in names:
        table = Artifact("", "", out, name)
        rows = sum(pq.ParquetFile(file).metadata.num_rows for file in table.files())
        outputs[name] = {"digest": table_digest(table.batches()), "rows": rows}
        if "content_id" in table.schema.names:
            outputs[name]["contract"] = contract_of(table.schema).name
    own = {out / "record.json", out / "run.json"}
    others = [
        path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".parquet" and path not in own
    ]
    if others:
        digests = {str(path.relative_to(out)): file_digest(path) for path in others}
        outputs[FILES] = {"digest": files_digest(digests), "files": digests}
    return outputs


def _table_name(file: str) -> str:
    match = _SHARD.match(file)
    return match[1] if match else file.removesuffix(".parquet")


def _identity(artifact: Artifact, kind: str) -> str:
    return artifact.fingerprint if kind == "record" else artifact.digest


def _memo_key(key: Mapping[str, Any]) -> str:
    """What a single row's result depends on, beside its content: everything but the inputs it came in."""
    return fingerprint_of({name: value for name, value in key.items() if name != "inputs"})


def _flat(inputs: Mapping[str, Any]) -> list[Artifact]:
    return [each for value in inputs.values() for each in (value if isinstance(value, list) else [value])]


def _column(batches: Any, name: str) -> pa.Array:
    chunks = [chunk for table in batches for chunk in table[name].chunks]
    return pa.chunked_array(chunks, type=pa.uuid())


def _environment() -> dict[str, Any]:
    options = settings()
    return {
        "machine": platform.machine(),
        "STILLHOUSE_THREADS": options.threads,
        "STILLHOUSE_DEVICE": options.device,
    }
