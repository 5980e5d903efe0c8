"""Make an artifact again from its sources, in a fresh store, and compare: a build that anyone can rebuild.

Every ancestor is made again by the code of today, each from what was made again before it, and compared with what is
published: digests, then rows and columns where they differ, then the bytes of the files where the same version of
pyarrow wrote both.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_type_hints

import orjson
from pydantic import BaseModel, ValidationError

from data.artifact import Artifact
from data.errors import BadInput
from data.fingerprint import NOT_IN_KEY, differences, fingerprint_of
from data.graph import ancestors
from data.sameness import Finding, differing_outputs, near, other_bytes
from infra.settings import use_settings
from infra.stage import ACCEPTING, Stage, describe_outputs, in_words
from infra.store import Store, current_store

State = Literal["same", "within tolerance", "DIFFERENT", "not rebuilt"]
FINE: tuple[State, ...] = ("same", "within tolerance")


class Build(NamedTuple):
    """What is to be made again: a published artifact, its stage, and the parameters that it was made with."""

    artifact: Artifact
    stage: Stage[Any]
    parameters: BaseModel
    seconds: float  # that it took


class Verdict(NamedTuple):
    """What came of one artifact."""

    artifact: Artifact
    state: State
    faults: list[str]  # what is wrong with the published folder itself, or with making it again
    changed: list[str]  # what of its key is not as it was: code, a source, a package
    findings: list[Finding]
    bytes: str
    seconds: float


# ---- before ----


def prepare(artifact: Artifact, find: Callable[[str], Stage[Any]], places: Mapping[str, str]) -> list[Build]:
    """Collect what must be made again, in order.

    Args:
        artifact: what to verify.
        find: a stage's name -> the stage.
        places: where sources lie now: by source name, or STAGE.PARAMETER for a model's folder and the like.

    Raises:
        BadInput: an ancestor is gone, nothing reads such a source, or a version made it that kept no parameters.
    """
    chain, gone = ancestors(artifact)
    if gone:
        found = f"{artifact}, whose ancestors {', '.join(gone)} the store no longer holds"
        raise BadInput(found, "all that it was made of", "run its recipe again")
    known: set[str] = set()
    builds = [_prepare(each, find(each.stage), places, known) for each in chain]
    if unknown := sorted(set(places) - known):
        wanted = f"one of {', '.join(sorted(known))}" if known else "an artifact with sources"
        raise BadInput(f"--source {unknown[0]}, which nothing here reads", wanted, "correct the name")
    return builds


def _prepare(artifact: Artifact, stage: Stage[Any], places: Mapping[str, str], known: set[str]) -> Build:
    file = artifact.path / "run.json"
    made = orjson.loads(file.read_bytes()) if file.exists() else {}
    if "parameters" not in made:
        found = f"{artifact}, made by a version that did not keep all parameters"
        raise BadInput(found, "parameters in its run.json", "remove its folder and run its recipe again")
    model = _model(stage)
    moved = dict(_moved(stage.name, model, made["parameters"], places, known))
    try:
        return Build(artifact, stage, model.model_validate(moved), made["seconds"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = f"{artifact}, made with the parameter {where} = {first['input']!r}: {first['msg']}"
        wanted = f"parameters that {stage.name} takes today"
        raise BadInput(found, wanted, "verify with the code that made it") from None


def _model(stage: Stage[Any]) -> type[BaseModel]:
    name = list(inspect.signature(stage.body).parameters)[1]
    model: type[BaseModel] = get_type_hints(stage.body)[name]
    return model


def _moved(
    stage: str, model: type[BaseModel], given: dict[str, Any], places: Mapping[str, str], known: set[str]
) -> Iterator[tuple[str, Any]]:
    """Put the places of today into parameters as they were given; `known` gathers the names that have a place."""
    for name, value in given.items():
        field = model.model_fields.get(name)
        if field and NOT_IN_KEY in field.metadata and isinstance(value, str):
            known.add(f"{stage}.{name}")
            yield name, places.get(f"{stage}.{name}", value)
        elif isinstance(value, list) and all(isinstance(each, dict) and {"name", "path"} <= {*each} for each in value):
            known |= {each["name"] for each in value}
            yield name, [each | {"path": places.get(each["name"], each["path"])} for each in value]
        else:
            yield name, value


# ---- making again ----


def verify(builds: list[Build], *, replay: bool, tell: Callable[[Verdict], None]) -> list[Verdict]:
    """Make everything again in a temporary store, and compare it with what is published.

    Args:
        builds: from `prepare`.
        replay: take the results for single rows from the store's memo instead of computing them.
        tell: called with each verdict as it is reached.

    Raises:
        BadInput: a source is not there.
    """
    store = current_store()
    verdicts: list[Verdict] = []
    made: dict[str, Artifact] = {}
    with TemporaryDirectory(prefix="stillhouse-verify-") as folder, use_settings(store=Path(folder)):
        _check_sources(builds)
        if replay:
            _lend_memo(store, Path(folder))
        for build in builds:
            verdicts.append(_verdict(build, made))
            tell(verdicts[-1])
    return verdicts


def _check_sources(builds: list[Build]) -> None:
    """See that all sources are there before anything is made; their digests are remembered for then."""
    for build in builds:
        if build.stage.reads:
            try:
                build.stage.reads(build.parameters)
            except BadInput as error:
                found = f"{build.artifact} cannot read its source: {error.found}"
                raise BadInput(found, error.wanted, "name its place of today with --source NAME=PATH") from None


def _lend_memo(store: Store, fresh: Path) -> None:
    """Let the fresh store read the memo of this one; what it adds stays its own."""
    for segment in store.root.glob(".memo/*/*.arrow"):
        target = fresh / segment.relative_to(store.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(segment)


def _verdict(build: Build, made: dict[str, Artifact]) -> Verdict:
    published, record = build.artifact, build.artifact.record
    began = time.monotonic()
    missing = {each["stage"] for each in record["inputs"] if _name(each["stage"], each["fingerprint"]) not in made}
    if missing:
        return Verdict(published, "not rebuilt", [f"depends on {', '.join(sorted(missing))}"], [], [], "", 0.0)
    try:
        with use_settings(**_settings(record)):
            again = build.stage(build.parameters, **_inputs(record, made))
    except BadInput as error:
        return Verdict(published, "not rebuilt", [error.found], [], [], "", time.monotonic() - began)
    made[_name(published.stage, published.fingerprint)] = again
    changed = [in_words(*each) for each in differences(record["key"], again.record["key"])]
    try:
        holds = describe_outputs(published.path)
    except (OSError, ValueError, BadInput) as error:  # as pyarrow says of a file that was damaged
        faults = [f"what it holds cannot be read: {error}"]
        return Verdict(published, "DIFFERENT", faults, changed, [], "other", time.monotonic() - began)
    findings = list(differing_outputs(published, holds, again, tolerant=record["class"] == "float"))
    faults = [*_faults(published, holds, again), *_other_measures(record, again.record)]
    bytes_ = "other"
    if not findings:
        bytes_, other = _bytes(published, again)
        faults += other
    state: State = "same"
    if faults or not all(finding.near for finding in findings):
        state = "DIFFERENT"
    elif findings:
        state = "within tolerance"
    return Verdict(published, state, faults, changed, findings, bytes_, time.monotonic() - began)


def _inputs(record: Mapping[str, Any], made: Mapping[str, Artifact]) -> dict[str, Artifact | list[Artifact]]:
    """Find what was made again for each input, by argument."""
    inputs: dict[str, Artifact | list[Artifact]] = {}
    for name, digest in record["key"]["inputs"].items():
        artifacts = []
        for each in record["inputs"]:
            if each["name"] == name:
                artifact = made[_name(each["stage"], each["fingerprint"])]
                artifacts.append(artifact[each["output"]] if each["output"] else artifact)
        inputs[name] = artifacts if isinstance(digest, list) else artifacts[0]
    return inputs


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result depends on, as they were."""
    accepted = {"accept_failed": True} if ACCEPTING.items() <= record["key"].items() else {}
    return accepted | ({"threads": record["environment"]["STILLHOUSE_THREADS"]} if "environment" in record else {})


# ---- comparing ----


def _faults(published: Artifact, holds: Mapping[str, Any], again: Artifact) -> Iterator[str]:
    """Find what of a published folder is not as it was published."""
    record, key = published.record, again.record["key"]
    if not fingerprint_of(record["key"]) == record["fingerprint"] == published.fingerprint:
        yield "its record is not the one that was published: the key has another fingerprint"
    if record["key"]["code"] == key["code"] and record["key"]["parameters"] != key["parameters"]:
        yield "its record and its run.json have different parameters"
    said = record["outputs"]
    if wrong := sorted(
        name for name in {*said, *holds} if said.get(name, {}).get("digest") != holds.get(name, {}).get("digest")
    ):
        yield f"what it holds is not what its record says: {', '.join(wrong)}"


def _other_measures(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[str]:
    was, now = record["measures"], again["measures"]
    for name in sorted(set(was) & set(now)):
        if not near(was[name], now[name], tolerant=record["class"] == "float"):
            yield f"measure {name}: {was[name]:g} published, {now[name]:g} rebuilt"


def _bytes(published: Artifact, again: Artifact) -> tuple[str, list[str]]:
    """Compare the bytes of files of equal content, where the same pyarrow wrote them: (in a word, faults)."""
    was, now = (each.record["packages"]["pyarrow"] for each in (published, again))
    if was != now:
        return f"not compared: pyarrow {was} then, {now} now", []
    other = other_bytes(published.path, again.path)
    return ("other", [f"equal content in other bytes: {', '.join(other)}"]) if other else ("same", [])


def _name(stage: str, fingerprint: str) -> str:
    return f"{stage}/{fingerprint}"
