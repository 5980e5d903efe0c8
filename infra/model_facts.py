"""What an exported model says of itself: how it was made, of which rows, and how it was measured.

All of it stands in the records of the store: of the model, of what it was made of, and of what measured it. A stage
that makes a model of another reads that one as the first of its references that is a model: following those gives the
chain of the model's own weights. Every other training among its ancestors made a teacher, or a model that chose rows.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.artifact import FILES, Artifact, read_parquet
from data.graph import ancestors, input_of
from infra.card import BALANCE, common_facts, funnel_line, source_digest, without_places
from infra.store import Store

HUB, PACKAGE = "hub:", "package:"
LEARNED = pa.schema([("row_id", pa.binary(16)), ("source", pa.string()), ("licence", pa.string())])


def is_model(artifact: Artifact) -> bool:
    """Say whether a handle points at the whole of a model that `from_pretrained` opens."""
    files = artifact.record["outputs"].get(FILES, {}).get("files", {})
    weights = any(name.endswith(".safetensors") and "/" not in name for name in files)
    return artifact.output in (None, FILES) and weights and "config.json" in files


def model_facts(store: Store, model: Artifact, run: dict[str, Any] | None) -> dict[str, Any]:
    """Collect what the card says and stillhouse.json holds.

    Args:
        store: the store that holds the model; its evaluations are looked for there.
        model: an artifact of which `is_model` is true.
        run: the record of the run that made it, if there was one.
    """
    made_of, gone = ancestors(model)
    chain = own_chain(made_of)
    learned = {each: learned_rows(each) for each in made_of if each.record["trains"]}
    own = distinct([rows for each, rows in learned.items() if each in chain])
    others = distinct([rows for each, rows in learned.items() if each not in chain])
    return {
        **common_facts(model, run, made_of),
        "model": shape(model),
        "chain": [_line(each) | chain_line(each, learned.get(each)) for each in chain],
        "sources": sources([each for each in made_of if each.record["source"]], own, others),
        "funnel": [funnel_line(each) for each in made_of if _has_rows(each)],
        "beside": [
            _line(each) | {"learned": len(learned[each]) if each in learned else None}
            for each in made_of
            if each not in chain and not _has_rows(each)
        ],
        "bases": [
            _line(each) | base_of(each) for each in made_of if is_model(each) and "model" in each.record["key"]["reads"]
        ],
        "evaluations": evaluations(store, model),
        "gone": sorted(gone),
    }


def _line(artifact: Artifact) -> dict[str, Any]:
    return {
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "output_digest": artifact.record["output_digest"],
    }


def _has_rows(artifact: Artifact) -> bool:
    return any("contract" in each for each in artifact.record["outputs"].values())


# ---- the model ----


def shape(model: Artifact) -> dict[str, Any]:
    """Tell a model's architecture and size; `parameters` counts what its files hold: tied weights once."""
    config = json.loads((model.path / "config.json").read_bytes())
    text = config.get("text_config") or config
    tensors = [each for file in sorted(model.path.glob("*.safetensors")) for each in _tensors(file)]
    return {
        "architecture": ", ".join(config.get("architectures") or [config.get("model_type", "")]),
        "parameters": sum(prod(each["shape"]) for each in tensors),
        "dtype": ", ".join(sorted({each["dtype"] for each in tensors})),
        "vocabulary": text.get("vocab_size"),
        "context": text.get("max_position_embeddings"),
    }


def _tensors(file: Path) -> list[dict[str, Any]]:
    """Read what a file of safetensors says of its tensors: the first 8 bytes are the length of that JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [each for name, each in header.items() if name != "__metadata__"]


def own_chain(made_of: list[Artifact]) -> list[Artifact]:
    """List the models that a model's weights went through, among it and its ancestors: in the order of making."""
    there = {(each.stage, each.fingerprint): each for each in made_of}
    chain = made_of[-1:]
    while True:
        inputs = chain[0].record["inputs"]
        read = [(each["stage"], each["fingerprint"]) for each in inputs if each["kind"] == "reference"]
        before = [there[name] for name in read if name in there and is_model(there[name])]
        if not before:
            return chain
        chain.insert(0, before[0])


def chain_line(model: Artifact, learned: pa.Table | None) -> dict[str, Any]:
    """Tell what one stage of the chain did to the weights."""
    record = model.record
    parameters, measures = record["key"]["parameters"], record["measures"]
    if record["trains"]:
        lora = parameters.get("lora")
        what = f"trained low-rank matrices of rank {lora['rank']}, and merged them" if lora else "trained all weights"
    elif record["key"]["reads"]:
        what = "took the model from outside, and settled its chat template"
    else:
        what = "made it of the model above" if record["inputs"] else "drew the first weights"
    return {
        "what": what,
        "learned": None if learned is None else len(learned),
        "parameters": without_places(parameters),
        "measures": {name: value for name, value in measures.items() if name not in BALANCE},
        "environment": record.get("environment", {}),
    }


def base_of(model: Artifact) -> dict[str, Any]:
    """Name a model from outside as others can find it: by hub and commit, by package; else by digests alone."""
    reads = model.record["key"]["reads"]["model"]
    if "hub" in reads:
        return {"name": reads["hub"], "revision": reads["revision"], "hub": True}
    made = model.path / "run.json"
    given = json.loads(made.read_bytes())["parameters"].get("model", "") if made.exists() else ""
    return {"name": given if given.startswith(PACKAGE) else None, "hub": False, "files": reads}


# ---- the rows ----


def learned_rows(model: Artifact) -> pa.Table:
    """Read which rows a training learned (`LEARNED`): its inputs' rows, but for those that it dropped or failed."""
    left = pa.chunked_array(
        [
            chunk.storage
            for ledger in ("dropped", "failed")
            if (file := model.path / f"{ledger}.parquet").exists()
            for chunk in read_parquet(file, ["row_id"])["row_id"].chunks
        ],
        pa.binary(16),
    )
    inputs = [input_of(model, each) for each in model.record["inputs"] if each["kind"] == "rows"]
    tables = [_with_plain_ids(each.read(LEARNED.names)) for each in inputs if (each.path / "record.json").exists()]
    rows = pa.concat_tables([LEARNED.empty_table(), *tables])
    return rows.filter(pc.invert(pc.is_in(rows["row_id"], left.combine_chunks())))


def _with_plain_ids(table: pa.Table) -> pa.Table:
    ids = pa.chunked_array([chunk.storage for chunk in table["row_id"].chunks], pa.binary(16))
    return table.set_column(0, LEARNED.field("row_id"), ids).cast(LEARNED)


def distinct(parts: list[pa.Table]) -> pa.Table:
    """Put tables of learned rows (`LEARNED`) together, each row once."""
    return pa.concat_tables([LEARNED.empty_table(), *parts]).group_by(LEARNED.names).aggregate([])


def sources(loads: list[Artifact], own: pa.Table, others: pa.Table) -> list[dict[str, Any]]:
    """Count rows by source and licence: loaded, learned by the model's own chain, learned by other models before it."""
    counted: dict[tuple[str, str], dict[str, Any]] = {}
    tables = [("loaded", each.read(["source", "licence"])) for each in loads] + [("learned", own), ("beside", others)]
    for what, table in tables:
        for line in table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist():
            empty = {"loaded": 0, "learned": 0, "beside": 0, "digest": None, "hub": None}
            counted.setdefault((line["source"], line["licence"]), empty)[what] += line["count_all"]
    for load in loads:
        for (source, _), counts in counted.items():
            reads = load.record["key"]["reads"].get(source)
            counts["digest"] = counts["digest"] or source_digest(reads)
            counts["hub"] = counts["hub"] or (reads or {}).get("hub", "").removeprefix(HUB) or None
    return [{"source": each[0], "licence": each[1], **counted[each]} for each in sorted(counted, key=str)]


# ---- how it was measured ----


def evaluations(store: Store, model: Artifact) -> list[dict[str, Any]]:
    """Find the evaluations of a model: artifacts of the stages `evaluate…` that read these very files.

    An evaluation is cached by its inputs' digests, so the same weights under another fingerprint count.
    """
    found = []
    for each in store.artifacts("evaluate*"):
        record = each.record
        roles = [made["name"] for made in record["inputs"] if made["digest"] == model.digest]
        if roles:
            found.append(
                _line(each)
                | {
                    "read_as": roles,
                    "rows": [
                        f"{made['stage']}/{made['fingerprint'][:12]}" + (f":{made['output']}" if made["output"] else "")
                        for made in record["inputs"]
                        if made["digest"] != model.digest
                    ],
                    "parameters": without_places(record["key"]["parameters"]),
                    "measures": {name: value for name, value in record["measures"].items() if name not in BALANCE},
                }
            )
    return found
