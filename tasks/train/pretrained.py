"""Bring a pretrained model into the store, with the chat template that it is trained and asked with.

GGUF weights are converted once, to fp32 safetensors. The template becomes part of the model: its tokens are in the
vocabulary, its end of turn is the end of sequence, and padding is never either.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic import Field

from data.fingerprint import NOT_IN_KEY, file_digest
from infra.child import run_in_child
from infra.models import model_digests, model_files
from infra.stage import Measures, Parameters, stage
from infra.work import Work
from tasks.train.chat import template_text
from tasks.train.checkpoints import OnStep
from tasks.train.models import load_model, load_tokenizer, write_model


class PretrainedParameters(Parameters):
    """Which model, and how it is spoken to."""

    origin: Literal["pretrained"] = Field("pretrained", description="A model that somebody else made.")
    model: Annotated[str, NOT_IN_KEY] = Field(
        description="Folder of safetensors, .gguf file, package:NAME (weights in a Python package), or hub OWNER/NAME."
    )
    revision: str = Field("", description="Commit of a hub model; default: the newest, looked up at each run.")
    chat_template: Annotated[str, NOT_IN_KEY] = Field(
        "chatml",
        description="chatml, plain, model (its own, with generation markers), or a path ending in .jinja.",
    )
    seed: int = Field(0, ge=0, description="Seed of the embeddings of tokens that the template adds.")


def model_reads(parameters: PretrainedParameters) -> dict[str, Any]:
    """Digest the model's files; name the chat template, or digest it where it is a file of the user's own."""
    template = parameters.chat_template
    own = template.endswith(".jinja") and Path(template).is_file()
    return {
        "model": model_digests(parameters.model, parameters.revision),
        "chat_template": file_digest(Path(template)) if own else template,
    }


@stage("float", reads=model_reads)
def pretrained(work: Work, parameters: PretrainedParameters) -> Measures:
    """Copy or convert the model, and settle its template, padding and end of turn.

    Raises:
        BadInput: no model, no weights, pickled weights, or a template that does not say what is the assistant's.
    """
    files = model_files(parameters.model, parameters.revision)
    measures: Measures = run_in_child(
        settle, files, parameters, work.out, folder=work.folder, what=f"opening {Path(parameters.model).name}"
    )
    return measures


def settle(files: list[Path], parameters: PretrainedParameters, out: Path, on_step: OnStep) -> Measures:
    """Open a model with its tokenizer, prepare both for the template, and write them to `out`."""
    from transformers import AutoTokenizer

    with TemporaryDirectory(dir=out.parent) as converted:
        folder = from_gguf(files[0], Path(converted)) if files[0].suffix == ".gguf" else files[0].parent
        own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        before = len(own)
        tokenizer = load_tokenizer(folder, template_text(parameters.chat_template, own))
        model = load_model(folder, tokenizer, parameters.seed, dtype="auto")
        write_model(model, tokenizer, out)
    return {"parameters": float(model.num_parameters()), "tokens_added": float(len(tokenizer) - before)}


def from_gguf(file: Path, folder: Path) -> Path:
    """Convert a GGUF file to a folder of fp32 safetensors, tokenizer included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantising, a quantizer stays attached, and neither saving nor training works (transformers 5.23).
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder
