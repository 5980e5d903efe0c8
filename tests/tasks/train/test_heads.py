"""A head taken out of a model gives the model's own logits, whatever the architecture does to them."""

from pathlib import Path

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from tasks.train.heads import Head, head_of, load_head

SHAPE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
MODELS = [
    pytest.param(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True), id="llama, tied"),
    pytest.param(
        Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.05), id="gemma 2, capped"
    ),
    pytest.param(CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.3), id="cohere, scaled"),
    pytest.param(GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=4.0), id="granite, divided"),
    pytest.param(PhiForCausalLM, PhiConfig(**SHAPE), id="phi, with a bias"),
]


@pytest.mark.parametrize(("architecture", "config"), MODELS)
def test_the_head_gives_the_models_own_logits(architecture: type, config: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = architecture(config).eval()
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    ids = torch.arange(10)[None] + 1
    with torch.inference_mode():
        hidden = model.get_decoder()(ids).last_hidden_state
        whole = model(ids).logits
        head = head_of(model)
        torch.testing.assert_close(head(hidden), whole)
        head.save(tmp_path / "head.safetensors")
        again = load_head(tmp_path / "head.safetensors")
        torch.testing.assert_close(again(hidden), whole)
        torch.testing.assert_close(head.cut(30)(hidden), whole[..., :30])
    assert again.equals(head)
    assert not head.cut(30).equals(head)


def test_heads_differ_by_a_weight_or_a_number() -> None:
    weight = torch.ones(3, 2)
    assert Head(weight).equals(Head(weight.clone()))
    assert not Head(weight).equals(Head(weight * 2))
    assert not Head(weight).equals(Head(weight, factor=2.0))
    assert not Head(weight).equals(Head(weight, torch.zeros(3)))
