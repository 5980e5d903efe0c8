"""The card of an exported model: a page for Hugging Face's hub and for people, of the facts of infra/model_facts.py."""

from typing import Any

from infra.card import BALANCE, hub_licence, recipe_parts
from infra.markdown import table_text, yaml_block, yaml_text

UNKNOWN = "unknown"  # the hub's name for a licence that nobody told
WEIGHTS = (".safetensors", ".gguf")


def model_page(facts: dict[str, Any]) -> str:
    """Write the card: Markdown under a YAML header."""
    recipe, short = facts["recipe"], f"{facts['stage']}/{facts['fingerprint'][:12]}"
    shape = facts["model"]
    parts = [
        f"---\n{yaml_text(model_header(facts))}---",
        f"# {recipe['recipe']} ({facts['stage']})" if recipe else f"# {facts['stage']}",
        f"{shape['architecture']}, {shape['parameters']:,} parameters ({shape['dtype']}), made by Stillhouse"
        + (f" from the recipe `{recipe['recipe']}`" if recipe else "")
        + f". The artifact is `{short}`. It reads up to {shape['context'] or 0:,} tokens, of a vocabulary of "
        f"{shape['vocabulary'] or 0:,}. Plain transformers opens this folder; the chat template is part of it, and "
        f"generation ends with `{facts['end_of_turn']}`.",
        *_how(facts),
        *_data(facts),
        *_licences(facts),
        *_metrics(facts),
        "## How to check it",
        "`stillhouse.json` holds the SHA-256 of the files here, the record of each artifact that the model was made "
        "of, with parameters and digests of its code and inputs, and what this card says. Who has the sources and the "
        f"code gets `{short}` again by running the same recipe; with the store as well, `stillhouse verify "
        f"{facts['fingerprint'][:12]}` makes everything again, trainings included, and compares it.",
        f"Digest of all that the artifact holds: `{facts['output_digest']}`.",
        "## Environment",
        *_environment(facts),
        *recipe_parts(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def model_header(facts: dict[str, Any]) -> dict[str, Any]:
    """Write what the hub reads: licence, library, task, and where base and rows are on the hub themselves."""
    bases = sorted({each["name"] for each in facts["bases"] if each["hub"] and _own(facts, each)})
    datasets = sorted({each["hub"] for each in facts["sources"] if each["hub"] and each["learned"] + each["beside"]})
    return {
        **_licence(facts),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["stillhouse", *(each["stage"] for each in facts["chain"])])),
        **({"base_model": bases} if bases else {}),
        **({"datasets": datasets} if datasets else {}),
    }


def _own(facts: dict[str, Any], base: dict[str, Any]) -> bool:
    return base["fingerprint"] in {each["fingerprint"] for each in facts["chain"]}


def _licence(facts: dict[str, Any]) -> dict[str, str]:
    """Name the one licence of all that the model was made of; of several, the hub has no name but `other`."""
    names = sorted({each["licence"] or UNKNOWN for each in _taught(facts)} | {UNKNOWN for _ in facts["bases"]})
    if len(names) > 1 or (names and names != [UNKNOWN] and hub_licence(names[0]) == "other"):
        return {"license": "other", "license_name": ", ".join(names)}
    return {"license": UNKNOWN if names in ([], [UNKNOWN]) else hub_licence(names[0])}


def _taught(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in facts["sources"] if each["learned"] or each["beside"]]


def _how(facts: dict[str, Any]) -> list[str]:
    chain, beside = facts["chain"], facts["beside"]
    parts = [
        "## How it was made",
        "Each stage began with the model of the line above.",
        table_text(
            ("stage", "artifact", "what it did", "rows", "steps", "tokens learned", "seed"),
            [
                (
                    each["stage"], each["fingerprint"][:12], each["what"], each["learned"],
                    *(_whole(each["measures"].get(name)) for name in ("steps", "tokens_assistant")),
                    each["parameters"].get("seed"),
                )
                for each in chain
            ],
        ),
        "Their parameters:",
        yaml_block({f"{each['stage']}/{each['fingerprint'][:12]}": each["parameters"] for each in chain}),
    ]  # fmt: skip
    if beside:
        lines = [(each["stage"], each["fingerprint"][:12], each["learned"], each["output_digest"]) for each in beside]
        parts += [
            "What taught it, or was read on the way, beside rows and its own weights:",
            table_text(("stage", "artifact", "rows it was trained on", "digest"), lines),
        ]
    if facts["gone"]:
        parts.append(f"No longer in the store, and so not told here: {', '.join(facts['gone'])}.")
    return parts


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _data(facts: dict[str, Any]) -> list[str]:
    if not facts["sources"]:
        return ["## Data", "It was trained on no rows."]
    columns = ("source", "licence", "loaded", "learned", "beside", "digest")
    return [
        "## Data",
        table_text(
            ("source", "licence", "rows loaded", "rows it learned", "rows other models learned", "SHA-256, or commit"),
            [[each[name] for name in columns] for each in facts["sources"]],
        ),
        "The digest is that of the source's file; with several files, of the list of their digests. A row counts once, "
        "however often it was read; a response that a model wrote counts for the source of its prompt. *Other models* "
        "are the teachers and whatever else the tables above name beside its own weights.",
        "What happened to the rows:",
        table_text(
            ("stage", "artifact", *(each.removeprefix("rows_") for each in BALANCE)),
            [(each["stage"], each["fingerprint"][:12], *(each[name] for name in BALANCE)) for each in facts["funnel"]],
        ),
    ]


def _licences(facts: dict[str, Any]) -> list[str]:
    lines = [("rows of " + each["source"], each["licence"] or UNKNOWN) for each in _taught(facts)]
    lines += [(f"the base model {_name(each)}", "not recorded: see where it comes from") for each in facts["bases"]]
    if not lines:
        return []
    return [
        "## Licences",
        "Those of what it was made of. Which of them bind a model, and its answers, is for you to find out.",
        table_text(("of", "licence"), lines),
    ]


def _name(base: dict[str, Any]) -> str:
    if base["hub"]:
        return f"{base['name']} at {base['revision']}"
    digests = ", ".join(f"{name} {digest[:12]}…" for name, digest in base["files"].items() if name.endswith(WEIGHTS))
    return f"{base['name'] or 'from files'} ({digests})"


def _metrics(facts: dict[str, Any]) -> list[str]:
    lines = [
        (
            each["stage"],
            each["fingerprint"][:12],
            ", ".join(each["read_as"]),
            ", ".join(each["rows"]),
            name,
            f"{value:.6g}",
        )
        for each in facts["evaluations"]
        for name, value in sorted(each["measures"].items())
    ]
    if not lines:
        return ["## Metrics", "The store holds no evaluation of this model."]
    return [
        "## Metrics",
        "All evaluations of this model in the store, each with the rows that were asked; losses are in nats per token.",
        table_text(("evaluation", "artifact", "read as", "beside", "measure", "value"), lines),
    ]


def _environment(facts: dict[str, Any]) -> list[str]:
    lines = [
        (
            each["stage"],
            each["fingerprint"][:12],
            ", ".join(f"{name} {value}" for name, value in each["environment"].items()),
        )
        for each in facts["chain"]
    ]
    return [
        table_text(("package", "version"), list(facts["packages"].items())),
        table_text(("stage", "artifact", "made on"), lines),
    ]
