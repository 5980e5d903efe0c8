"""What a training takes: bytes of memory and disk, estimated from sizes alone, before any weight is read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.train.checkpoints import KEPT
from tasks.train.passes import POSITIONS
from tasks.train.training import LoraParameters, TrainingParameters, adapted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
LOGIT_COPIES = 6  # arrays of (positions, vocabulary) at the height of a step of DCKD: measured 6.0, of ADPA 5.0


class Sizes(NamedTuple):
    """What an estimate wants to know of a model."""

    parameters: int
    trained: int  # of them, or of LoRA's matrices
    layers: int
    width: int  # features of a hidden state
    inner: int  # features inside a feed-forward network
    heads: int  # of attention
    vocabulary: int  # rows of the embedding, which may be padded
    context: int  # longest sequence that the model was made for, in tokens
    head: int  # numbers in what makes logits of hidden states


class Needs(NamedTuple):
    """Bytes of a training at its height."""

    weights: int  # with gradients and AdamW's two moments
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def sizes_of(model: Path, lora: LoraParameters | None = None) -> Sizes:
    """Look up the sizes of a model in a folder, without its weights.

    Raises:
        BadInput: LoRA's matrices are wanted at modules that it has not.
    """
    network = outline(model)
    config = network.config.get_text_config().to_dict()
    parameters, head = int(network.num_parameters()), int(network.get_output_embeddings().weight.numel())
    trained = parameters
    if lora is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers, not the user's to mend
            matrices = adapted(network, TrainingParameters(lora=lora)).parameters()
        trained = sum(each.numel() for each in matrices if each.requires_grad)
    return Sizes(
        parameters,
        trained,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        inner=config.get("intermediate_size") or 4 * config["hidden_size"],
        heads=config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        context=config.get("max_position_embeddings") or 1 << 30,
        head=head,
    )


def outline(model: Path) -> PreTrainedModel:
    """Build the model in a folder without weights: its modules and their shapes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(model, local_files_only=True)
        )
    return network


def training_needs(
    model: Sizes, sequences: int, length: int, positions: int, precision: str, *, checkpointing: bool
) -> Needs:
    """Estimate the memory of one training step.

    Weights in fp32, of what is trained a gradient and two moments, all told 16 bytes a parameter; in bf16 autocast
    keeps a copy of the weights.

    Args:
        model: the model in training.
        sequences: in memory at once.
        length: tokens of the longest.
        positions: response positions whose logits are in memory at once.
        precision: fp32 or bf16 (autocast).
        checkpointing: activations are computed twice, and only the layers' inputs kept.
    """
    half = precision == "bf16"
    added = 0 if model.trained == model.parameters else 4 * model.trained
    weights = (6 if half else 4) * model.parameters + added + 12 * model.trained
    layer = layer_activations(model, sequences, length, precision)
    inputs = sequences * length * model.width * 4
    activations = model.layers * inputs + 2 * layer if checkpointing else model.layers * layer
    embedding = 4 * model.vocabulary * model.width  # the second gradient of a matrix that is used twice
    return Needs(weights, activations + embedding, LOGIT_COPIES * 4 * positions * model.vocabulary)


def layer_activations(model: Sizes, sequences: int, length: int, precision: str) -> int:
    """Estimate what the backward pass wants of one layer of a Llama with eager attention.

    A count as in Korthikanti et al. 2022 (section 4.1), with numbers fitted to SmolLM2 in transformers: of each token
    13 states, 4 inner states of the gated feed-forward network, and 2.25 rows of scores of each head. Autocast to bf16
    leaves norms and scores in fp32: 0.7 of the bytes, measured.
    """
    numbers = 13 * model.width + 4 * model.inner + 2.25 * model.heads * length
    return int(sequences * length * numbers * (2.8 if precision == "bf16" else 4))


def pass_needs(models: list[Sizes], sequences: int, length: int, precision: str) -> int:
    """Estimate the memory of a pass of models that are not trained: weights, a layer, logits of some positions."""
    each = 2 if precision == "bf16" else 4
    layer = max(layer_activations(model, sequences, length, precision) for model in models)
    logits = 3 * 4 * POSITIONS * max(model.vocabulary for model in models)
    return each * sum(model.parameters for model in models) + layer + logits


def cache_bytes(models: list[Sizes], positions: int, precision: str) -> int:
    """Count the bytes of a teacher_cache in its exact form: a state for each position, and the heads once."""
    return (2 if precision == "bf16" else 4) * sum(positions * model.width + model.head for model in models)


def training_disk(model: Sizes) -> int:
    """Estimate the disk that a training takes: the model, the checkpoints that are kept and one that is being written.

    A checkpoint has what is trained and two moments of it.
    """
    return 4 * model.parameters + (KEPT + 1) * 12 * model.trained


def memory_there() -> int:
    """Ask how many bytes of memory are free where models run: on the GPU, or in this machine.

    A limit of the container counts where it is less.
    """
    import torch

    from infra.devices import torch_device

    if torch_device() == "cuda":
        free: int = torch.cuda.mem_get_info()[0]
        return free
    import psutil

    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    available: int = psutil.virtual_memory().available
    return available if text == "max" else min(available, int(text))
