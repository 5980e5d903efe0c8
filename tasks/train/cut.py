"""Cut a student out of a teacher: remove the layers that matter least to what it says.

The importance of a layer is the divergence of the model without it from the whole model,

    importance(l) = mean over positions of KL(whole || without l)        nats per token

over the response positions of a calibration set, with the whole vocabulary. The layers of highest importance stay, in
their order. Removing a layer from a residual network is close to replacing it by the identity (Veit et al. 2016); that
depth-pruned language models go on speaking is in Men et al. 2024 (ShortGPT) and Kim et al. 2024 (Shortened LLaMA),
who rank layers by the likeness of their input and output, and by perplexity. The divergence asks for the same at the
place where it counts and needs no labels.

All layers are left out in turn, but what comes before a layer is computed once: layers after it are run again from the
input that it had. That is half the work of as many whole passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data.errors import BadInput
from data.ids import lowest
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Parameters, Reference, stage
from infra.work import Pick, Work
from tasks.train.chat import teaches
from tasks.train.heads import head_of
from tasks.train.models import load_model, load_tokenizer, write_model
from tasks.train.pairs import encode_talk, talks_of
from tasks.train.passes import POSITIONS, Encoded, marked_states, open_model, padded, position_losses

if TYPE_CHECKING:
    from torch import Tensor

# Settings of an architecture that say something of each layer, in a list.
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "layer_rope_theta")


class CutParameters(Parameters):
    """How many layers stay, and on what their importance is measured."""

    origin: Literal["cut"] = Field("cut", description="Some layers of another model.")
    keep: int = Field(ge=1, description="Layers to keep, fewer than the model has.")
    rows: int = Field(64, ge=1, description="Rows to measure on, those of the lowest row ids.")
    max_length: int = Field(256, ge=2, description="Longest conversation, in tokens; what is longer is cut at its end.")
    batch_size: int = Field(8, ge=1, description="Conversations in one pass of the model.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Weights and arithmetic of the passes; the student's weights are the model's own."
    )


@stage("float")
def cut(work: Work, parameters: CutParameters, rows: Reference, model: Reference) -> Measures:
    """Measure the layers and write the model without the least important; output `importance`, one line a layer.

    Of preferences the chosen side is the calibration set; of other rows the answer.

    Raises:
        BadInput: no more layers than are to be kept, an architecture that is built in another way, or rows without a
            response within max_length.
    """
    layers = _layers(model.path, parameters.keep)
    places = lowest(rows.read(["row_id"])["row_id"], parameters.rows)
    size = parameters.batch_size
    batches = [Pick(rows, places[start : start + size]) for start in range(0, len(places), size)]
    gpus = 1 if torch_device() == "cuda" else 0
    shards = work.map(partial(weigh_rows, parameters, model.path), batches, "weights", gpus, draft=True)
    weighed = _sums(shards, "weights", ["positions", *map(str, range(layers))])
    positions = weighed["positions"]
    if not positions:
        raise BadInput(
            f"{len(places)} rows to measure layers on, none with a response within {parameters.max_length} tokens",
            "at least one",
            "raise max_length, or take other rows",
        )
    nats = [round(weighed[str(layer)] / positions, 6) for layer in range(layers)]
    kept = most_important(nats, parameters.keep)
    table = {"layer": range(layers), "nats": nats, "kept": [layer in kept for layer in range(layers)]}
    work.write_single(pa.table({name: pa.array(list(each)) for name, each in table.items()}), "importance")
    number = write_cut(model.path, kept, work.out)
    compare = partial(compare_rows, parameters, model.path, work.out)
    found = _sums(work.map(compare, batches, "compared", gpus, draft=True), "compared")
    return {
        "layers": float(len(kept)),
        "parameters": float(number),
        "positions": positions,
        "kl": found["kl"] / positions,
        "perplexity_before": float(np.exp(found["before"] / positions)),
        "perplexity_after": float(np.exp(found["after"] / positions)),
    }


def most_important(nats: list[float], keep: int) -> list[int]:
    """Choose the layers of highest importance, ascending; of equal ones the earlier."""
    return sorted(sorted(range(len(nats)), key=lambda layer: (-nats[layer], layer))[:keep])


def weigh_rows(parameters: CutParameters, model: Path, rows: Pick) -> Tables:
    """Sum each layer's divergences over the response positions of a batch: columns `positions`, and the layers'."""
    import torch

    network, tokenizer = open_model(model, parameters.precision)
    encoded = encode_rows(parameters, tokenizer, rows)
    layers = network.config.get_text_config().num_hidden_layers
    nats, positions = torch.zeros(layers, dtype=torch.float64), 0
    if encoded:
        ids, seen, learned = padded(encoded, len(encoded), tokenizer.pad_token_id, network.device)
        with torch.inference_mode():
            states = states_without(network, ids, seen, learned)
            nats, positions = divergences(head_of(network), *states), len(states[0])
    columns = {str(layer): [float(each)] for layer, each in enumerate(nats)}
    return {"weights": pa.table({"positions": [float(positions)], **columns})}


def compare_rows(parameters: CutParameters, model: Path, student: Path, rows: Pick) -> Tables:
    """Sum over the response positions of a batch: KL(whole || cut), and both models' losses, in nats."""
    import torch

    (whole, tokenizer), (rest, _) = (open_model(each, parameters.precision) for each in (model, student))
    encoded = encode_rows(parameters, tokenizer, rows)
    sums = {"kl": 0.0, "before": 0.0, "after": 0.0}
    if encoded:
        ids, seen, learned = padded(encoded, len(encoded), tokenizer.pad_token_id, whole.device)
        labels = ids[:, 1:][learned]
        with torch.inference_mode():
            both = [marked_states(each, ids, seen, learned) for each in (whole, rest)]
            sums["kl"] = float(divergences(head_of(whole), *both, other=head_of(rest))[0])
            sums["before"], sums["after"] = (
                float(position_losses(each, states, labels).double().sum())
                for each, states in zip((whole, rest), both, strict=True)
            )
    return {"compared": pa.table({name: [each] for name, each in sums.items()})}


def encode_rows(parameters: CutParameters, tokenizer: Any, rows: Pick) -> Encoded:
    """Encode the conversations of rows, a preference's chosen side; those with nothing to learn are left out."""
    talks = next(iter(talks_of(rows.read()).values()))
    encoded = [encode_talk(tokenizer, talk, parameters.max_length) for talk in talks]
    return [(ids, mask) for ids, mask in encoded if teaches(mask)]


def states_without(model: Any, ids: Tensor, seen: Tensor, learned: Tensor) -> list[Tensor]:
    """Run the decoder whole and without each of its layers: last states at the learned positions (k, width).

    Layers are called again as the whole pass called them, with its masks and positions: an architecture that gives
    some layers other ones is measured right.

    Raises:
        BadInput: the last states are more than the norm of the last layer's output.
    """
    import torch

    decoder = model.get_decoder()
    calls: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = []

    def note(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden, *rest = arguments
        calls.append((hidden, lambda other: layer(other, *rest, **named)))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in decoder.layers]
    whole = marked_states(model, ids, seen, learned)
    for hook in hooks:
        hook.remove()

    def rest_of(hidden: Tensor, first: int) -> Tensor:
        for _, call in calls[first:]:
            hidden = call(hidden)
        states: Tensor = decoder.norm(hidden)
        return states[:, :-1][learned]

    if not torch.allclose(rest_of(calls[-1][0], len(calls) - 1), whole, rtol=1e-3, atol=1e-3):
        raise _another_build(type(model).__name__, "more after its last layer than a norm")
    return [whole, *(rest_of(hidden, layer + 1) for layer, (hidden, _) in enumerate(calls))]


def divergences(head: Any, whole: Tensor, *others: Tensor, other: Any = None) -> Tensor:
    """Sum KL(whole || other) over positions, of each of the others.

    Args:
        head: makes logits of states.
        whole: states (k, width).
        others: states of the same shape.
        other: the others' head; None: the same.

    Returns:
        Nats (len(others),), fp64, computed in fp32.
    """
    import torch
    from torch.nn.functional import cross_entropy

    sums = torch.zeros(len(others), dtype=torch.float64)
    for first, *parts in zip(*(torch.split(each, POSITIONS) for each in (whole, *others)), strict=True):
        log_q = head(first).float().log_softmax(-1)
        q = log_q.exp()
        entropy = (q * log_q).sum(-1)
        # kl_at would make q anew for each of the others: twice the time, measured with 49,000 tokens
        for at, part in enumerate(parts):
            logits = (other or head)(part).float()
            sums[at] += (entropy + cross_entropy(logits, q, reduction="none")).double().sum().cpu()
    return sums


def write_cut(model: Path, kept: list[int], output: Path) -> int:
    """Write the model with these layers alone, in its own precision; return its number of parameters.

    Raises:
        BadInput: the folder does not open as the model that was meant.
    """
    from torch.nn import ModuleList
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)
    network = load_model(model, tokenizer, seed=0, dtype="auto")
    decoder, config = network.get_decoder(), network.config.get_text_config()
    decoder.layers = ModuleList([decoder.layers[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    for name in PER_LAYER:
        values = config.to_dict().get(name)
        if values is not None:
            setattr(config, name, [values[layer] for layer in kept])
    write_model(network, tokenizer, output)
    _, told = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True, local_files_only=True)
    if any(told.values()):
        raise _another_build(type(network).__name__, "layers that are not told apart by the settings known here")
    return int(network.num_parameters())


def _layers(model: Path, keep: int) -> int:
    """Count a model's layers.

    Raises:
        BadInput: no model, one of another build, or one with too few layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (model / "config.json").is_file():
        raise BadInput(f"no config.json in {model}", "a model's folder", "name a model")
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, local_files_only=True))
    named = dict(network.get_decoder().named_children())
    if not {"layers", "norm"} <= set(named):
        raise _another_build(type(network).__name__, f"a decoder of {', '.join(named)}")
    layers = len(named["layers"])
    if keep >= layers:
        raise BadInput(f"keep: {keep}, of a model with {layers} layers", "fewer than it has", "lower keep")
    return layers


def _another_build(architecture: str, what: str) -> BadInput:
    return BadInput(
        f"{architecture}, with {what}",
        "a decoder of layers and a norm, as in Llama, Qwen or Gemma",
        "cut a model of such an architecture",
    )


def _sums(shards: list[Path], table: str, columns: list[str] | None = None) -> dict[str, float]:
    whole = pa.concat_tables(read_shard(shard, table) for shard in shards)
    return {name: float(pc.sum(whole[name]).as_py()) for name in columns or whole.column_names}
