"""Let a model answer the prompts of rows, greedily or sampled: one response or several for each.

Advantage-guided distillation (Gao et al. 2025) learns on what the student itself says: one greedy response to each
prompt, made before training.

    greedy     token = argmax over v of  log p(v | prompt, tokens before)
    sampled    token = argmax over v of  log p(v | prompt, tokens before) / temperature + noise(v)

The noise (tasks/train/sampling.py) is made of the seed, the prompt's tokens, the number of the sample and the number of
the token. So a draw depends on nothing else: not on the rows beside it, their order, or the number of workers.

The model sees fixed shapes (tasks/train/passes.py), and each response is remembered by the model's digest, the prompt's
tokens and the number of the sample: a kill, or another run over the same prompts, pays for none twice.
"""

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from data.artifact import ROWS, SHARD_ROWS, Artifact
from data.contracts import GENERATION, ID, contract_of, dropped_rows, edges_schema, failed_schema
from data.errors import BadInput
from data.ids import content_ids, created_id, ids_from_bytes, sortable
from infra.devices import torch_device
from infra.shards import Tables, read_shard, write_table
from infra.stage import Measures, Parameters, Reference, Rows, stage
from infra.work import Pick, Slice, Work
from tasks.train.chat import Message, encode_prompt
from tasks.train.passes import batches, ends_of, generate_ids, open_model, open_tokenizer, prompt_width
from tasks.train.sampling import sampled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = pa.schema([("prompt_id", ID), ("ids", pa.list_(pa.int32()))])


class RespondParameters(Parameters):
    """How to answer."""

    max_new_tokens: int = Field(512, ge=1, description="Longest response, in tokens, its end of turn counted.")
    max_length: int = Field(1024, ge=1, description="Longest prompt, in tokens; rows with longer ones are dropped.")
    batch_size: int = Field(32, ge=1, description="Responses in one pass of the model.")
    temperature: float = Field(
        0.0, ge=0, le=10, description="Divides the logits before a draw; 0: greedy, the likeliest token each time."
    )
    samples: int = Field(1, ge=1, description="Responses to each prompt; more than one need a temperature above 0.")
    seed: int = Field(0, ge=0, description="Draws other responses; greedy ones do not depend on it.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Weights and arithmetic of the model; bf16 is faster where processor or GPU have it."
    )

    @model_validator(mode="after")
    def _draws(self) -> "RespondParameters":
        if self.samples > 1 and not self.temperature:
            raise ValueError("several samples at temperature 0 are one: raise temperature, or ask for one sample")
        return self


@stage("float")
def respond(work: Work, parameters: RespondParameters, rows: Rows, model: Reference) -> Measures:
    """Make responses of the model to the prompts of rows; each is a new row of the generation contract.

    A prompt is what stands before the answer: of preferences and pairs their prompt, of a conversation the turns before
    the assistant's last, of a text the whole, as a user's turn. Output `rows`: prompt, completion and finish_reason
    (`stop`, or `length` for one cut at max_new_tokens), prompt_id (row_id of the row that the prompt is of), tokens (of
    the response, with its end of turn), tools and sample where there are any, source and licence of the prompt's row.

    Raises:
        BadInput: prompts and responses do not fit into the model's context, or no prompt is left.
    """
    check_context(model.path, parameters)
    encode = partial(encode_rows, parameters.max_length, model.path)
    shards = work.map(encode, work.slices(rows), "prompts", draft=True)
    prompts = pa.concat_tables([PROMPTS.empty_table(), *(read_shard(shard, "prompts") for shard in shards)])
    for ledger in ("dropped", "failed"):
        work.ledger(ledger, (read_shard(shard, ledger) for shard in shards))
    if not len(prompts):
        raise BadInput(
            f"{rows.rows:,} rows, none with a prompt of at most {parameters.max_length:,} tokens",
            "at least one prompt",
            "raise max_length, or look at what the stages before have dropped",
        )
    requests = requests_of(prompts, parameters.samples, model.digest)
    asked = store_requests(requests, work.folder / "requests")
    gpus = 1 if torch_device() == "cuda" else 0
    remembered = work.remember(
        partial(answer, parameters, model.path), asked, parameters.batch_size, gpus, np.arange(len(requests))
    )
    answers = pa.concat_tables([values.set_column(0, "row_id", ids) for ids, values in remembered])
    made = responses(rows.read(), requests, answers, several=parameters.samples > 1)
    work.write(made.slice(start, SHARD_ROWS) for start in range(0, len(made), SHARD_ROWS))
    work.ledger("edges", [pa.table([made["row_id"], made["prompt_id"]], schema=edges_schema())])
    return measures(made)


def measures(made: pa.Table) -> Measures:
    """Count tokens, and the shares of responses that ended by themselves and that say nothing."""
    return {
        "tokens": float(pc.sum(made["tokens"]).as_py()),
        "tokens_per_response": float(pc.mean(made["tokens"]).as_py()),
        "share_ended": float(pc.mean(pc.equal(made["finish_reason"], "stop").cast(pa.float64())).as_py()),
        "share_empty": float(pc.mean(pc.equal(made["completion"], "").cast(pa.float64())).as_py()),
    }


def check_context(model: Path, parameters: RespondParameters) -> None:
    """Refuse limits that add up to more than the model can read.

    Raises:
        BadInput: max_length and max_new_tokens are more than the model's positions.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    # each architecture has its own names; one without a limit of positions has none
    context = getattr(config, "max_position_embeddings", None)
    wanted = parameters.max_length + parameters.max_new_tokens
    if context and wanted > context:
        raise BadInput(
            f"prompts of {parameters.max_length:,} tokens and responses of {parameters.max_new_tokens:,}, "
            f"for a model that reads {context:,}",
            f"max_length + max_new_tokens of at most {context:,}",
            "lower one of them",
        )


# ---- prompts ----


def prompt_of(row: dict[str, Any]) -> list[Message]:
    """Take the turns to answer out of a row of any contract; none where there is nothing to answer."""
    if row.get("messages") is not None:
        turns = list(row["messages"])
        turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    else:
        asked = row["text"] if row.get("prompt") is None else row["prompt"]
        turns = [{"role": "user", "content": asked, "tool_calls": None}] if isinstance(asked, str) else list(asked)
    return turns if turns and turns[-1]["role"] != "assistant" else []


def encode_rows(max_length: int, model: Path, rows: Slice) -> Tables:
    """Encode the prompts of a shard: `prompts` (PROMPTS), and the ledgers of what is dropped or failed."""
    from jinja2 import TemplateError

    table = rows.read()
    contract_of(table.schema)  # refuses other tables
    tokenizer = open_tokenizer(model)
    encoded: list[list[int]] = []
    errors: dict[int, str] = {}
    for at, row in enumerate(table.to_pylist()):
        turns = prompt_of(row)
        try:
            encoded.append(encode_prompt(tokenizer, turns, row.get("tools")) if turns else [])
        except (TemplateError, BadInput) as error:
            errors[at] = f"the prompt cannot be rendered: {error}"
            encoded.append([])
    lengths = np.array([len(each) for each in encoded])
    failed = np.isin(np.arange(len(encoded)), list(errors))
    nothing, long = (lengths == 0) & ~failed, lengths > max_length
    asked = np.flatnonzero((lengths > 0) & ~long)
    ids, tokens = _whole(table["row_id"]), pa.array(lengths[long], pa.float64())
    dropped = [
        dropped_rows(ids.filter(pa.array(nothing)), "no turn to answer"),
        dropped_rows(ids.filter(pa.array(long)), "prompt longer than max_length", tokens),
    ]
    told = [ids.filter(pa.array(failed)), list(errors.values()), [""] * len(errors)]
    return {
        "prompts": pa.table([ids.take(pa.array(asked)), [encoded[at] for at in asked]], schema=PROMPTS),
        "dropped": pa.concat_tables(dropped),
        "failed": pa.table(told, schema=failed_schema()),
    }


# ---- requests ----


def requests_of(prompts: pa.Table, samples: int, model: str) -> pa.Table:
    """Ask for `samples` responses to each prompt, prompts of like length together.

    Returns:
        row_id of the response, content_id (what it is remembered by: model, prompt, sample), prompt_id, sample, ids.
    """
    encoded = prompts["ids"].to_pylist()
    order = np.repeat(np.argsort([prompt_width(len(ids)) for ids in encoded], kind="stable"), samples)
    numbers = np.tile(np.arange(samples), len(encoded))
    parents = _whole(prompts["prompt_id"]).storage.to_pylist()
    names = [created_id("respond", [parents[at]], int(n)) for at, n in zip(order, numbers, strict=True)]
    keys = [digest(model, encoded[at], int(n)) for at, n in zip(order, numbers, strict=True)]
    taken = prompts.take(pa.array(order))
    return pa.table(
        {
            "row_id": ids_from_bytes(b"".join(names)),
            "content_id": ids_from_bytes(b"".join(keys)),
            "prompt_id": taken["prompt_id"],
            "sample": pa.array(numbers, pa.int32()),
            "ids": taken["ids"],
        }
    )


def digest(what: str, ids: Sequence[int], sample: int) -> bytes:
    """Digest a purpose, a prompt's tokens and the number of a sample: 16 bytes."""
    started = blake2b(what.encode() + b"\0" + sample.to_bytes(8, "little"), digest_size=16)
    started.update(np.asarray(ids, "<i4").tobytes())
    return started.digest()


def store_requests(requests: pa.Table, folder: Path) -> Artifact:
    """Write the requests where workers can read some of them."""
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(requests), SHARD_ROWS)):
        write_table(requests.slice(start, SHARD_ROWS), folder / f"{ROWS}-{number:05}.parquet", draft=True)
    return Artifact("respond", "", folder)


# ---- answers ----


def answer(parameters: RespondParameters, model: Path, requests: Pick) -> pa.Table:
    """Run the model for some requests: content_id, completion, finish_reason, tokens."""
    table = requests.read()
    network, tokenizer = open_model(model, parameters.precision)
    prompts, samples = table["ids"].to_pylist(), table["sample"].to_pylist()
    found: list[list[int]] = [[] for _ in prompts]
    for batch in batches([prompt_width(len(ids)) for ids in prompts], parameters.batch_size):
        asked = [prompts[at] for at in batch]
        keys = [digest(f"noise {parameters.seed}", prompts[at], samples[at]) for at in batch]
        shift = sampled(parameters.temperature, keys, parameters.batch_size) if parameters.temperature else None
        made = generate_ids(network, tokenizer, asked, parameters.batch_size, parameters.max_new_tokens, shift)
        for at, ids in zip(batch, made, strict=True):
            found[at] = ids
    ends = ends_of(network, tokenizer)
    ended = [each[-1] in ends for each in found]
    return pa.table(
        {
            "content_id": table["content_id"],
            "completion": pa.array([text_of(tokenizer, each) for each in found], pa.string()),
            "finish_reason": pa.array(["stop" if each else "length" for each in ended], pa.string()),
            "tokens": pa.array([len(each) for each in found], pa.int64()),
        }
    )


def text_of(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Decode a response as it was written, without special tokens; a call of tools stays text."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def responses(rows: pa.Table, requests: pa.Table, answers: pa.Table, *, several: bool) -> pa.Table:
    """Make rows of the generation contract, in the order of the prompts' rows and of samples.

    Args:
        rows: those that the prompts are of.
        requests: as `requests_of` returns them.
        answers: row_id, completion, finish_reason, tokens.
        several: whether samples are numbered.
    """
    place = {each: at for at, each in enumerate(rows["row_id"].to_pylist())}
    origin = np.array([place[each] for each in requests["prompt_id"].to_pylist()])
    order = np.lexsort([requests["sample"].to_numpy(), origin])
    asked = requests.take(pa.array(order))
    parents = rows.take(pa.array(origin[order]))
    known = sortable(_whole(answers["row_id"]))
    sorting = np.argsort(known, kind="stable")
    found = answers.take(pa.array(sorting[np.searchsorted(known[sorting], sortable(_whole(asked["row_id"])))]))
    wanted = ["source", "licence", *(["tools"] if "tools" in rows.column_names else [])]
    prompts = [prompt_of(each) for each in parents.to_pylist()]
    made = pa.table(
        {
            "row_id": asked["row_id"],
            "prompt": pa.array(prompts, GENERATION.schema.field("prompt").type),
            "completion": found["completion"],
            "finish_reason": found["finish_reason"],
            **{name: parents[name] for name in wanted},
            "prompt_id": asked["prompt_id"],
            "tokens": found["tokens"],
            **({"sample": asked["sample"]} if several else {}),
        }
    )
    return made.add_column(1, "content_id", content_ids(made, GENERATION))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
