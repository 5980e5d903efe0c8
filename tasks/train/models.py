"""Open a base model for training, and write the model that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadInput
from infra.devices import torch_device
from tasks.train.chat import prepare_tokenizer, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(base: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """Open the tokenizer in a model's folder and prepare it for a chat template's text; None: its own.

    Raises:
        BadInput: the folder holds no model, or `chat.prepare_tokenizer` or `chat.template_text` refuses it.
    """
    from transformers import AutoTokenizer

    _want_model(base)
    tokenizer = AutoTokenizer.from_pretrained(base)  # further arguments would end up in tokenizer_config.json
    prepare_tokenizer(tokenizer, template_text("model", tokenizer) if template is None else template)
    return tokenizer


def _want_model(base: Path) -> None:
    if not (base / "config.json").is_file():
        raise BadInput(f"no config.json in {base}", "a model's folder", "name the folder that holds the model")


def load_model(base: Path, tokenizer: PreTrainedTokenizerBase, seed: int, dtype: str = "float32") -> PreTrainedModel:
    """Open the model in a folder of safetensors for training with a prepared tokenizer.

    Weights are fp32 for training, whatever the folder holds, since updates to bf16 weights round to nothing; a
    dtype of "auto" keeps the folder's. The embeddings
    grow to len(tokenizer) if they are smaller, the new rows drawn with `seed`; the model's eos, bos and
    padding ids become the tokenizer's. Attention is "eager" on a CPU (in training nearly twice as fast there
    as SDPA with a padding mask) and SDPA on a GPU.

    Raises:
        BadInput: the folder holds no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    _want_model(base)
    set_seed(seed)
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    text = config.get_text_config()
    # The embedding freezes the row of the padding token that it is made with: it must not be the base's eos.
    text.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id < text.vocab_size else None
    model = AutoModelForCausalLM.from_pretrained(
        base,
        config=config,
        dtype=dtype,
        attn_implementation="sdpa" if torch_device() == "cuda" else "eager",
        use_safetensors=True,
        local_files_only=True,
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    _align(model, tokenizer)
    return model


def _align(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model the tokenizer's special ids; in generation the base's own eos ids go on ending a text."""
    config, generation = model.config.get_text_config(), model.generation_config
    eos = generation.eos_token_id
    before = eos if isinstance(eos, list) else [eos]
    dead = (None, tokenizer.eos_token_id, tokenizer.pad_token_id)
    config.eos_token_id = tokenizer.eos_token_id
    generation.eos_token_id = [tokenizer.eos_token_id, *(each for each in before if each not in dead)]
    config.pad_token_id = generation.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        config.bos_token_id = generation.bos_token_id = tokenizer.bos_token_id


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the folder that `from_pretrained` opens: safetensors, configurations, tokenizer, chat template.

    Equal weights and settings give equal bytes wherever they are written: no path and no time is in them.
    """
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
