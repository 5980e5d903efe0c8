"""@flow: assignments from stages, in order; planned without running, run under Prefect.

    @flow
    def sft(parameters: SftFlowParameters) -> Built: ...

`plan` walks a flow and says of each stage: cached, to run, or depends on. `run` plans first: when everything is
cached it answers at once, with no Prefect, Ray or torch; otherwise it runs as a Prefect flow, on the configured
server or an ephemeral one. Calling the flow itself runs its stages with neither.
"""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, NamedTuple, get_type_hints

from pydantic import BaseModel

from data.artifact import Artifact
from data.errors import BadInput
from data.graph import ancestors
from data.tags import check_name, find_tag
from infra.progress import say
from infra.shards import stop_ray
from infra.stage import Run, Step, current_run
from infra.store import Store, current_store


class Built(NamedTuple):
    """Name what a flow made; None where it makes none."""

    dataset: Artifact | None = None
    model: Artifact | None = None
    report: Artifact | None = None
    tag: str = ""  # the name that the dataset is tagged with when all is done

    @property
    def artifacts(self) -> dict[str, Artifact | None]:
        """What was made, by what it is."""
        return {"dataset": self.dataset, "model": self.model, "report": self.report}


@dataclass(eq=False)
class Flow:
    """A flow that can be called, planned and run."""

    name: str
    body: Callable[[Any], Built]

    def __call__(self, parameters: BaseModel) -> Built:
        """Run the stages here and now, without Prefect."""
        return self.body(parameters)

    @property
    def parameters(self) -> type[BaseModel]:
        """The model of the flow's parameters, from its annotation."""
        model: type[BaseModel] = get_type_hints(self.body)["parameters"]
        return model


def flow(body: Callable[[Any], Built]) -> Flow:
    """Make a flow of a function `(parameters) -> Built`; its name is the function's."""
    made = Flow(body.__name__, body)
    update_wrapper(made, body, updated=())
    return made


def stored(name: str, *tables: str) -> Artifact:
    """Begin a flow with a dataset that the store holds, by its tag (`name@v3`) or any other name of an artifact.

    What it was made of counts as stages of the run, all of them cached; the run's record says which version it was.

    Args:
        name: NAME@vK, NAME for the newest version, or whatever else names an artifact.
        tables: the tables of rows that it must hold.

    Raises:
        BadInput: there is no such dataset, or it has not these tables.
    """
    run = current_run.get() or Run("none", current_store())
    tag = find_tag(run.store.root, name)
    artifact = run.store.resolve(str(tag) if tag else name)
    there = [table for table, each in artifact.record["outputs"].items() if "contract" in each]
    if artifact.output or set(tables) - set(there):
        what = "one table" if artifact.output else f"the tables {', '.join(there)}" if there else "no table of rows"
        wanted = f"a dataset with the tables {' and '.join(tables)}"
        raise BadInput(f"{name}, which is {artifact}, {what}", wanted, "name what `split` published, whole")
    run.stored[name] = {"tag": str(tag) if tag else None, "artifact": f"{artifact.stage}/{artifact.fingerprint}"}
    for each in ancestors(artifact).there:
        run.steps.append(Step(each.stage, each.fingerprint, "cached", [], each, record=each.record))
        run.tell(run.steps[-1])
    return artifact


def plan(flow: Flow, parameters: BaseModel) -> list[Step]:
    """Walk the flow without running anything."""
    return _walk(flow, parameters, current_store())[0].steps


def _walk(flow: Flow, parameters: BaseModel, store: Store) -> tuple[Run, Built]:
    planned = Run("plan", store, planning=True)
    token = current_run.set(planned)
    try:
        return planned, flow(parameters)
    finally:
        current_run.reset(token)


def run(flow: Flow, parameters: BaseModel, recipe: str, tell: Callable[[Step], None]) -> tuple[Run, Built]:
    """Run a flow, or answer from the store when everything is there; record what was done.

    Args:
        flow: the flow.
        parameters: its parameters.
        recipe: name of the recipe, for the record.
        tell: called with each step as it ends.
    """
    store = current_store()
    began = time.time()
    identity = time.strftime("%Y%m%dT%H%M%S", time.gmtime(began)) + "-" + secrets.token_hex(3)
    planned, built = _walk(flow, parameters, store)
    if built.tag:
        check_name(built.tag)
    current = Run(identity, store, tell=tell)
    state = "failed"
    try:
        stop_in_order()
        if all(step.state == "cached" for step in planned.steps):
            for step in planned.steps:
                tell(step)
            current.steps, current.stored = planned.steps, planned.stored
        else:
            built = _run_with_prefect(flow, parameters, current)
        if built.tag and built.dataset:
            current.tagged = str(store.tag(built.dataset, built.tag))
        state = "done"
    finally:
        store.write_run(identity, _summary(flow, recipe, parameters, current, built, state, began))
        stop_ray()
    return current, built


def _summary(
    flow: Flow, recipe: str, parameters: BaseModel, run: Run, built: Built, state: str, began: float
) -> dict[str, Any]:
    return {
        "run": run.identity,
        "flow": flow.name,
        "recipe": recipe,
        "parameters": parameters.model_dump(mode="json"),
        "state": state,
        "began": began,
        "seconds": time.time() - began,
        "stored": run.stored,
        "stages": [
            {"stage": s.stage, "fingerprint": s.fingerprint, "state": s.state, "seconds": s.seconds} for s in run.steps
        ],
        **{
            name: f"{made.stage}/{made.fingerprint}" if made is not None and state == "done" else None
            for name, made in built.artifacts.items()
        },
        "tagged": run.tagged,
    }


def stop_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what was begun is recorded, stopped and cleared away."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _run_with_prefect(flow: Flow, parameters: BaseModel, current: Run) -> Built:
    say("[dim]starting Prefect …[/dim]")
    prepare_prefect()
    import prefect
    from prefect.cache_policies import NO_CACHE

    def perform(name: str, work: Callable[[], Step]) -> Step:
        step: Step = prefect.task(work, name=name, cache_policy=NO_CACHE, persist_result=False)()
        return step

    def body() -> Built:
        current.perform = perform
        token = current_run.set(current)
        try:
            return flow(parameters)
        finally:
            current_run.reset(token)

    built: Built = prefect.flow(body, name=flow.name, persist_result=False)()
    return built


def prepare_prefect() -> None:
    """Set Prefect's environment before it is imported: quiet, with a patient ephemeral server.

    Without a configured server, the database is migrated first: on a fresh one the ephemeral server would
    otherwise exceed its start-up limit (20 s by default).
    """
    defaults = {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # an error is ours to tell, once and in words
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
        upgraded = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if upgraded.returncode:
            said = (upgraded.stderr.strip().splitlines() or ["nothing"])[-1]
            raise BadInput(
                f"Prefect cannot make its database; it said: {said}",
                "a home for Prefect that can be written, or a server that runs",
                "set PREFECT_HOME to a folder of yours, or PREFECT_API_URL to a server",
            )
