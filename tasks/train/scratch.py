"""Make a tiny character-level Llama from random weights: no download, and it learns for real."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from infra.child import run_in_child
from infra.stage import Measures, Parameters, stage
from infra.work import Work
from tasks.train.chat import prepare_tokenizer
from tasks.train.checkpoints import OnStep
from tasks.train.models import write_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PRINTABLE_ASCII = "".join(map(chr, range(0x20, 0x7F)))
ACCENTED = "éöñÉÖÑ"  # those of data/samples/quickstart.jsonl and their capitals
PAD, UNKNOWN, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, UNKNOWN, END, *ROLES)  # in this order they are the ids 0 to 5 of every such tokenizer
TEMPLATE = "templates/plain.jinja"


class ScratchParameters(Parameters):
    """Say how large the model is, which characters it reads and which weights it starts from."""

    origin: Literal["scratch"] = Field(default="scratch", description="a new model, of random weights")
    layers: int = Field(default=2, ge=1, le=64, description="transformer blocks, 1 to 64")
    width: int = Field(default=64, ge=8, le=4096, description="hidden size in features")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; width / heads must be whole and even")
    feed_forward: int = Field(default=128, ge=8, le=16384, description="inner size of the MLP, in features")
    context: int = Field(default=64, ge=8, le=8192, description="longest sequence in tokens (= characters)")
    spread: float = Field(default=0.1, gt=0, le=1, description="standard deviation of the first weights")
    alphabet: str = Field(
        default=PRINTABLE_ASCII + ACCENTED,
        min_length=1,
        description="the characters that are tokens, each once; any other becomes <|unk|>",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of the first weights")

    @field_validator("alphabet")
    @classmethod
    def _each_once(cls, alphabet: str) -> str:
        twice = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if twice:
            raise ValueError(f"alphabet holds {twice} more than once; name each character once")
        return alphabet

    @model_validator(mode="after")
    def _heads_fit(self) -> ScratchParameters:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width is {self.width} with {self.heads} heads; rotary positions need an even "
                f"number of features a head: make width a multiple of {2 * self.heads}"
            )
        return self


@stage("float")
def scratch(work: Work, parameters: ScratchParameters) -> Measures:
    """Make the model and its tokenizer."""
    measures: Measures = run_in_child(draw, parameters, work.out, folder=work.folder, what="scratch")
    return measures


def draw(parameters: ScratchParameters, out: Path, on_step: OnStep) -> Measures:
    """Draw the weights and write the model to `out`: what the child process runs."""
    tokenizer = character_tokenizer(parameters)
    model = random_llama(parameters, len(tokenizer))
    write_model(model, tokenizer, out)
    return {"parameters": float(model.num_parameters()), "vocabulary": float(len(tokenizer))}


def character_tokenizer(parameters: ScratchParameters) -> PreTrainedTokenizerFast:
    """Make the tokenizer that reads one character as one token.

    Its vocabulary is `SPECIAL` (ids 0 to 5) and then the alphabet in its order; <|end|> ends a turn and is
    the end-of-sequence token, <|pad|> is another. It adds no token of its own to a text, and
    decode(encode(text)) == text for every text over the alphabet, spaces included.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *parameters.alphabet])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=list(ROLES),
        model_max_length=parameters.context,
        clean_up_tokenization_spaces=False,
    )
    prepare_tokenizer(tokenizer, Path(__file__).parent.joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return tokenizer


def random_llama(parameters: ScratchParameters, vocabulary_size: int) -> LlamaForCausalLM:
    """Make a Llama with random fp32 weights on the CPU, the same bits for the same parameters.

    The ids of <|pad|> and <|end|> are those of `character_tokenizer`; the embedding is also the output layer.
    torch's own random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=parameters.width,
        intermediate_size=parameters.feed_forward,
        num_hidden_layers=parameters.layers,
        num_attention_heads=parameters.heads,
        num_key_value_heads=parameters.heads,
        max_position_embeddings=parameters.context,
        initializer_range=parameters.spread,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(parameters.seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config)
        return model
