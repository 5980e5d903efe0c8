"""Embed rows: a vector of unit length for each, by a sentence encoder or, without any weights, by hashed words.

Vectors are remembered by the content of their row: rows that are added to a source are embedded alone. So that a
vector does not depend on what else is in its batch, an encoder sees fixed shapes: texts are padded to a multiple of 32
tokens, and every batch has the same number of texts, the last one filled up with copies.
"""

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data.contracts import contract_of
from data.errors import BadInput
from data.fingerprint import NOT_IN_KEY
from data.text import Part, row_texts
from infra.devices import torch_device
from infra.models import model_digests, model_files
from infra.stage import Measures, Parameters, Reference, stage
from infra.work import Pick, Work
from tasks.curate.ngrams import ngrams, words_of
from tasks.train.passes import batches, bucket

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Vectors = npt.NDArray[np.float32]

HASHING = "hashing"


class EmbedParameters(Parameters):
    """By what to embed, and which text of a row."""

    encoder: Annotated[str, NOT_IN_KEY] = Field(
        HASHING,
        description="Sentence encoder: folder of safetensors, package:NAME, or hub OWNER/NAME; `hashing` needs none.",
    )
    revision: str = Field("", description="Commit of an encoder on the hub; default: the newest, looked up each run.")
    part: Part = Field("all", description="Text of a row to embed: all of it, its prompt, or its answer.")
    prefix: str = Field("", description="Text put before each, as some encoders want it (E5: `query: `).")
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="Vector of a text: the mean over its tokens, or its first token's."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of an encoder; bf16 is 3 to 4 times as fast where processor or GPU have it."
    )
    max_length: int = Field(256, ge=8, description="Longest text, in tokens; what is longer is cut.")
    batch_size: int = Field(32, ge=1, description="Texts in one pass of an encoder.")
    dimensions: int = Field(256, ge=8, description="Length of vectors of hashed words; an encoder has its own.")


def encoder_digests(parameters: EmbedParameters) -> dict[str, Any]:
    """Digest the encoder's files, or its commit on the hub."""
    if parameters.encoder == HASHING:
        return {"encoder": HASHING}
    return {"encoder": model_digests(parameters.encoder, parameters.revision)}


@stage("float", reads=encoder_digests)
def embed(work: Work, parameters: EmbedParameters, rows: Reference) -> Measures:
    """Embed each row; output `embeddings`: row_id, vector (float32, unit length), tokens (before any cut).

    Raises:
        BadInput: no rows, no such encoder, or it gives vectors that are not finite.
    """
    if not rows.rows:
        raise BadInput(f"{rows} without a row", "rows to embed", "see what the stages before have dropped")
    if parameters.encoder == HASHING:
        function, gpus = partial(hash_rows, parameters), 0
    else:
        gpus = 1 if torch_device() == "cuda" else 0
        function = partial(encode_rows, parameters)
    cut = 0

    def tables() -> Any:
        nonlocal cut
        for ids, values in work.remember(function, rows, gpus=gpus):
            cut += int(np.sum(values["tokens"].to_numpy() > parameters.max_length))
            yield pa.table({"row_id": ids, "vector": values["vector"], "tokens": values["tokens"]})

    work.write(tables(), "embeddings")
    return {} if parameters.encoder == HASHING else {"rows_cut": float(cut)}


def hash_rows(parameters: EmbedParameters, rows: Pick) -> pa.Table:
    """Embed rows by their hashed words and pairs of words."""
    table = rows.read()
    words = words_of(row_texts(table, contract_of(table.schema), parameters.part))
    single, pairs = ngrams(words, 1), ngrams(words, 2)
    owners = np.concatenate([single.owners, pairs.owners])
    vectors = hashed_features(owners, np.concatenate([single.hashes, pairs.hashes]), len(table), parameters.dimensions)
    return _remembered(table, vectors, np.diff(words.bounds))


def hashed_features(
    owners: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64], rows: int, dimensions: int
) -> Vectors:
    """Sum signed features and scale each row to unit length: (rows, dimensions); a row without features is zero.

    Feature hashing (Weinberger et al. 2009, section 2): one half of a hash chooses the dimension, one bit the sign.
    The square root of each sum keeps the commonest words from drowning all others.

    Args:
        owners: (k,) row of each feature.
        hashes: (k,) feature hashes.
        rows: number of rows.
        dimensions: length of a vector.
    """
    places = owners * dimensions + (hashes >> np.uint64(32)).astype(np.int64) % dimensions
    signs = np.where(hashes & np.uint64(1), 1.0, -1.0)
    sums = np.bincount(places, weights=signs, minlength=rows * dimensions).reshape(rows, dimensions)
    return unit(np.sign(sums) * np.sqrt(np.abs(sums)))


def encode_rows(parameters: EmbedParameters, rows: Pick) -> pa.Table:
    """Embed rows by a sentence encoder."""
    table = rows.read()
    texts = row_texts(table, contract_of(table.schema), parameters.part).to_pylist()
    model, tokenizer = open_encoder(parameters.encoder, parameters.revision, parameters.precision)
    limit = min(parameters.max_length, tokenizer.model_max_length)
    encoded = tokenizer([parameters.prefix + text for text in texts], verbose=False)["input_ids"]
    end = tokenizer.sep_token_id
    cut = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1] if end is None else end] for ids in encoded]
    vectors = np.zeros((len(cut), model.config.hidden_size), np.float32)
    for batch in batches([len(ids) for ids in cut], parameters.batch_size):
        vectors[batch] = encode(model, tokenizer.pad_token_id, [cut[at] for at in batch], parameters)
    broken = ~np.isfinite(vectors).all(1)
    if broken.any():
        row = table["row_id"][int(broken.argmax())].as_py()
        raise BadInput(
            f"{int(broken.sum())} vectors of {parameters.encoder} that are not finite, the first of row {row}",
            "an encoder that gives finite vectors",
            "choose another encoder, or look at that row's text",
        )
    return _remembered(table, unit(vectors), np.array([len(ids) for ids in encoded]))


def encode(model: "PreTrainedModel", pad: int, texts: list[list[int]], parameters: EmbedParameters) -> Vectors:
    """Pool the last hidden states of token ids: (len(texts), d); the batch is filled up to its constant size."""
    import torch

    width = bucket(max(map(len, texts)))
    filled = texts + [texts[-1]] * (parameters.batch_size - len(texts))
    ids = torch.tensor([each + [pad] * (width - len(each)) for each in filled], device=model.device)
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in filled], device=model.device)
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        if parameters.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden.float() * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    vectors: Vectors = pooled[: len(texts)].float().cpu().numpy()
    return vectors


@lru_cache(maxsize=1)
def open_encoder(reference: str, revision: str, precision: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Open a sentence encoder, once per process, on the device that the settings name."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    file = model_files(reference, revision)[0]
    if file.suffix == ".gguf":
        raise BadInput(f"the encoder {file}, in GGUF", "a folder of safetensors", "name the encoder's original folder")
    folder = file.parent
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    return model.to(torch_device()).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def unit(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Scale vectors (n, d) to length 1; a zero vector stays zero."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(1, keepdims=True))
    scaled: Vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _remembered(rows: pa.Table, vectors: Vectors, tokens: npt.NDArray[np.int64]) -> pa.Table:
    flat = pa.array(vectors.ravel(), pa.float32())
    return pa.table(
        {
            "content_id": rows["content_id"],
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            "tokens": pa.array(tokens, pa.int64()),
        }
    )
