"""Write a model into a folder that plain transformers opens.

DEST/README.md              the card
DEST/model.safetensors      the weights, LoRA's merged; never a pickle
DEST/config.json, generation_config.json, chat_template.jinja, tokenizer files
DEST/adapter/               LoRA's matrices alone, where there are some
"""

import json
import shutil
from pathlib import Path
from typing import Any

from data.artifact import FILES, Artifact
from data.errors import BadInput
from data.fingerprint import file_digest
from infra.model_card import model_page
from infra.model_facts import model_facts
from infra.store import Store

KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, configurations, template, vocabularies


def fill_with_model(
    store: Store, model: Artifact, run: dict[str, Any] | None, folder: Path
) -> tuple[dict[str, Any], str]:
    """Copy a model's files into a folder; return what stillhouse.json holds, and the card.

    Raises:
        BadInput: a file is not as it was published.
    """
    names = [name for name in model.record["outputs"][FILES]["files"] if name.endswith(KINDS)]
    for name in names:
        copy_checked(model, name, folder)
    end = end_generation(folder)
    described = [
        {"path": name, "bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in sorted({*names, "generation_config.json"})
    ]
    facts = model_facts(store, model, run) | {"end_of_turn": end, "files": described}
    return facts, model_page(facts)


def copy_checked(model: Artifact, name: str, folder: Path) -> None:
    """Copy one file of a model, and see that it is what was published.

    Raises:
        BadInput: it is gone or changed.
    """
    source, target = model.path / name, folder / name
    target.parent.mkdir(exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
        if file_digest(target) == model.record["outputs"][FILES]["files"][name]:
            return
    found = f"{model} whose {name} is not what was published"
    remedy = "delete the artifact and run its recipe again; `stillhouse doctor --deep` looks at the rest of the store"
    raise BadInput(found, "the file that its record digests", remedy)


def end_generation(folder: Path) -> str:
    """See that generation ends with the template's turn, which is the tokenizer's eos; return that token.

    Other ids that end a text, and all else that the model says of generation, stay.
    """
    token: str = json.loads((folder / "tokenizer_config.json").read_bytes())["eos_token"]
    added = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
    end = next(each["id"] for each in added if each["content"] == token)
    file = folder / "generation_config.json"
    generation = json.loads(file.read_bytes()) if file.exists() else {}
    ends = generation.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if end not in known:
        generation["eos_token_id"] = [end, *known]
        file.write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return token
