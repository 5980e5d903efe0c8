"""The card of an exported dataset: what it holds, where that came from, what left on the way and why.

All of it stands in the records and ledgers of the artifact and of what it was made of; nothing of the machine that
it was made on: no host, no path, no time.
"""

import re
from collections import Counter
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from data.artifact import Artifact, read_parquet
from data.contracts import CONTRACTS
from data.fingerprint import files_digest
from data.graph import ancestors
from infra.markdown import table_text, yaml_block, yaml_text

BALANCE = ("rows_in", "rows_out", "rows_created", "rows_consumed", "rows_dropped", "rows_failed")
SHOWN = 40  # reasons on the card; the rest is in stillhouse.json

# The identifiers that the hub knows (its documentation of repository licences), as far as data goes under them.
# They are SPDX names in lower case, without `-only`, `-or-later` and the version of those that have one version.
HUB_LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "c-uda",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "ecl-2.0", "epl-2.0", "etalab-2.0", "eupl-1.2", "gfdl", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0",
    "mit", "mpl-2.0", "odbl", "odc-by", "ofl-1.1", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
ONE_VERSION = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "gfdl-1.3": "gfdl"}
COLUMNS = {column for contract in CONTRACTS.values() for column in contract.columns}
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])*[^\s/\\'\":;,]+")
SECRETS = re.compile(r"(?i)api_?key|secret|password|access_token|auth_token")


# ---- facts ----


def dataset_facts(dataset: Artifact, run: dict[str, Any] | None) -> dict[str, Any]:
    """Collect what the card says and stillhouse.json holds.

    Args:
        dataset: an artifact with tables of rows, or one of its tables.
        run: the record of the run that made it, if there was one.
    """
    chain, gone = ancestors(dataset, ["rows"])
    whole = ancestors(dataset)
    return {
        **common_facts(dataset, run, whole.there),
        "tables": {
            name: {"contract": each["contract"], "rows": each["rows"], "digest": each["digest"]}
            for name, each in dataset.record["outputs"].items()
            if "contract" in each and dataset.output in (None, name)
        },
        "sources": sources(dataset, chain),
        "funnel": [funnel_line(each) for each in chain],
        "reasons": [line for each in chain for line in reasons(each)],
        "references": [
            {"stage": each.stage, "fingerprint": each.fingerprint, "output_digest": each.record["output_digest"]}
            for each in whole.there
            if each not in chain
        ],
        "gone": sorted({*gone, *whole.gone}),
    }


def common_facts(artifact: Artifact, run: dict[str, Any] | None, made_of: list[Artifact]) -> dict[str, Any]:
    """Collect what the cards of datasets and of models both say: identity, recipe, packages, records of ancestors."""
    packages: dict[str, set[str]] = {}
    for each in made_of:
        for name, version in each.record["packages"].items():
            packages.setdefault(name, set()).add(version)
    return {
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "output_digest": artifact.record["output_digest"],
        "recipe": run
        and {"recipe": run["recipe"], "flow": run["flow"], "parameters": without_places(run["parameters"])},
        "packages": {name: ", ".join(sorted(versions)) for name, versions in sorted(packages.items())},
        "lineage": [each.record for each in made_of],
    }


def sources(dataset: Artifact, chain: list[Artifact]) -> list[dict[str, Any]]:
    """Count the rows of each source and licence: loaded, and kept in the dataset; with a digest of its files."""
    counted: dict[tuple[str, str], dict[str, Any]] = {}

    def count(artifact: Artifact, what: str) -> None:
        for name, each in artifact.record["outputs"].items():
            if "contract" in each and artifact.output in (None, name):
                table = Artifact(artifact.stage, artifact.fingerprint, artifact.path, name).read(["source", "licence"])
                for line in table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist():
                    empty = {"loaded": 0, "kept": 0, "digest": None}
                    counts = counted.setdefault((line["source"], line["licence"]), empty)
                    counts[what] += line["count_all"]

    for each in chain:
        if each.record["source"]:
            count(each, "loaded")
            for (source, _), counts in counted.items():
                counts["digest"] = counts["digest"] or source_digest(each.record["key"]["reads"].get(source))
    count(dataset, "kept")
    return [
        {"source": source, "licence": licence, **counted[source, licence]}
        for source, licence in sorted(counted, key=str)
    ]


def source_digest(reads: Any) -> str | None:
    """Shorten what a source read to one digest: of its one file, of the list of its files, or a hub's commit."""
    if not isinstance(reads, dict) or not reads:
        return None
    if "revision" in reads:
        return str(reads["revision"])
    return str(next(iter(reads.values()))) if len(reads) == 1 else files_digest(reads)


def funnel_line(artifact: Artifact) -> dict[str, Any]:
    """Count the rows of one stage."""
    measures = artifact.record["measures"]
    return {
        "stage": artifact.stage,
        "fingerprint": artifact.fingerprint,
        "class": artifact.record["class"],
        **{name: int(measures[name]) for name in BALANCE},
    }


def reasons(artifact: Artifact) -> list[dict[str, Any]]:
    """Count the rows that left at one stage, by reason: the most common first."""
    lines = []
    for ledger, column in (("dropped", "reason"), ("failed", "error")):
        file = artifact.path / f"{ledger}.parquet"
        words = read_parquet(file, [column])[column].to_pylist() if file.exists() else []
        counts = Counter(map(without_content, words) if ledger == "failed" else words)
        lines += [
            {
                "stage": artifact.stage, "fingerprint": artifact.fingerprint, "what": ledger,
                "reason": reason, "rows": count,
            }
            for reason, count in sorted(counts.items(), key=lambda each: (-each[1], str(each[0])))
        ]  # fmt: skip
    return lines


def without_places(parameters: Any, name: str = "") -> Any:
    """Reduce the paths in a recipe's parameters to the names of their files, and leave out what looks like a key."""
    if isinstance(parameters, dict):
        return {key: without_places(value, key) for key, value in parameters.items() if not SECRETS.search(key)}
    if isinstance(parameters, list):
        return [without_places(each, name) for each in parameters]
    if not isinstance(parameters, str) or parameters.startswith(("hub:", "package:")):
        return parameters
    here: PurePath = PurePosixPath(parameters)
    there = PureWindowsPath(parameters)
    somewhere = here.is_absolute() or there.is_absolute() or parameters.startswith(("~", "./", "../"))
    if (somewhere or name == "path") and "\n" not in parameters:
        return (there if "\\" in parameters else here).name or parameters
    return parameters


def without_content(error: str | None) -> str:
    """Take out of an error what is of one row or one machine: what it quotes, but for columns, numbers and paths."""
    text = PATH.sub("…", error or "no error told")
    text = QUOTED.sub(lambda quoted: quoted[0] if quoted[0][1:-1] in COLUMNS else "…", text)
    return re.sub(r"\d+", "N", text)


# ---- the page ----


def header(facts: dict[str, Any], configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Write what the hub and `datasets` read: licences, sizes, and which files are which split."""
    names = sorted({line["licence"] for line in facts["sources"] if line["kept"]}, key=str)
    known = {name: hub_licence(name) for name in names}
    others = [name for name, each in known.items() if each == "other"]
    return {
        "license": sorted(set(known.values())) or ["unknown"],
        **({"license_name": ", ".join(map(str, others))} if others else {}),
        "size_categories": [size_category(sum(each["rows"] for each in facts["tables"].values()))],
        "tags": ["stillhouse"],
        "configs": configs,
    }


def hub_licence(name: str | None) -> str:
    """Spell a licence (an SPDX name, most likely) as the hub does; `other` where it knows none."""
    plain = (name or "").lower().removesuffix("-only").removesuffix("-or-later")
    plain = ONE_VERSION.get(plain, plain)
    return plain if plain in HUB_LICENCES else "other"


def size_category(rows: int) -> str:
    """Name the hub's class of a dataset of so many rows."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    at = next((at for at in range(len(steps)) if rows < 10 ** (at + 3)), len(steps))
    if at == 0:
        return "n<1K"
    return "n>1T" if at == len(steps) else f"{steps[at - 1]}<n<{steps[at]}"


def page(facts: dict[str, Any], configs: list[dict[str, Any]]) -> str:
    """Write the card: Markdown under a YAML header."""
    recipe, short = facts["recipe"], facts["fingerprint"][:12]
    rows = sum(each["rows"] for each in facts["tables"].values())
    left = sorted(facts["reasons"], key=lambda each: -each["rows"])[:SHOWN]
    parts = [
        f"---\n{yaml_text(header(facts, configs))}---",
        f"# {recipe['recipe'] if recipe else facts['stage']}",
        f"{rows:,} rows, made by Stillhouse"
        + (f" from the recipe `{recipe['recipe']}`" if recipe else "")
        + f". The artifact is `{facts['stage']}/{short}`. Each row names its source and its licence in the columns "
        "`source` and `licence`. `row_id` says which row it is, `content_id` is a digest of what it says; both are "
        "UUIDs, written as text here.",
        table_text(
            ("table", "contract", "rows", "digest"),
            [(name, each["contract"], each["rows"], each["digest"]) for name, each in facts["tables"].items()],
        ),
        "## Sources and licences",
        table_text(
            ("source", "licence", "rows loaded", "rows kept", "SHA-256, or commit"),
            [[each[name] for name in ("source", "licence", "loaded", "kept", "digest")] for each in facts["sources"]],
        ),
        "The digest is that of the source's file; with several files, of the list of their digests.",
        "## How it was made",
        table_text(
            ("stage", "artifact", "in", "out", "created", "consumed", "dropped", "failed"),
            [(each["stage"], each["fingerprint"][:12], *(each[name] for name in BALANCE)) for each in facts["funnel"]],
        ),
        *_also_read(facts),
        "## What left, and why",
        table_text(
            ("stage", "reason", "rows"),
            [(each["stage"], each["reason"], each["rows"]) for each in left],
        )
        if left
        else "Every row that was loaded is here.",
        "## How to check it",
        "`stillhouse.json` holds the SHA-256 of every file in `data/`, the record of each artifact that the dataset "
        "was made of, with parameters and digests of its code and inputs, and these counts. Who has the sources and "
        f"the code gets `{facts['stage']}/{short}` again, with these digests, by running the same recipe; with the "
        f"store as well, `stillhouse verify {short}` makes everything again and compares it, row by row.",
        f"Digest of all that the artifact holds: `{facts['output_digest']}`.",
        table_text(("package", "version"), list(facts["packages"].items())),
        *recipe_parts(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def _also_read(facts: dict[str, Any]) -> list[str]:
    """Name what was read beside the rows, and what can no longer be told."""
    parts = []
    if facts["references"]:
        lines = [(each["stage"], each["fingerprint"][:12], each["output_digest"]) for each in facts["references"]]
        parts = [
            "Read beside the rows (models, rows to compare with):",
            table_text(("stage", "artifact", "digest"), lines),
        ]
    if facts["gone"]:
        parts.append(f"No longer in the store, and so not told here: {', '.join(facts['gone'])}.")
    return parts


def recipe_parts(recipe: dict[str, Any] | None) -> list[str]:
    """Write the recipe, if there is one, under a heading of its own."""
    if recipe is None:
        return []
    block = yaml_block({"flow": recipe["flow"], "parameters": recipe["parameters"]})
    return ["## Recipe", "Of paths, only the last part is given.", block]
