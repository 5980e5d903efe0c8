"""Passes in fixed shapes: a row's loss is what a hand computes, with the same bits whatever stands beside it."""

import pytest
import torch
from transformers import PreTrainedModel

from infra.shards import one_thread
from tasks.train.passes import POSITIONS, batches, bucket, mean_losses, position_losses
from tasks.train.scratch import ScratchParameters, random_llama

Row = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return random_llama(ScratchParameters(layers=2, width=32, heads=4, feed_forward=48, context=128), 40).eval()


def row(length: int, learned: int, seed: int) -> Row:
    ids = torch.randint(1, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids, [0] * (length - learned) + [1] * learned


def test_a_loss_is_the_mean_over_the_masked_tokens(model: PreTrainedModel) -> None:
    ids, mask = row(20, 6, 1)
    [(loss, tokens)] = mean_losses(model, 0, [(ids, mask)], 4)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    assert tokens == 6 and loss == pytest.approx(float(nats[-6:].mean()), abs=1e-5)


def test_a_row_has_the_same_bits_alone_and_among_others(model: PreTrainedModel) -> None:
    rows = [row(20 + n % 12, 5 + n % 7, n) for n in range(8)]
    with one_thread():
        whole = mean_losses(model, 0, rows, 8)
        for at, each in enumerate(rows):
            assert mean_losses(model, 0, [each], 8) == [whole[at]]
        assert mean_losses(model, 0, rows[5:] + rows[:2], 8) == whole[5:] + whole[:2]


def test_more_positions_than_fit_at_once_are_scored_in_turn(model: PreTrainedModel) -> None:
    hidden = torch.randn(2 * POSITIONS + 3, 32)
    labels = torch.randint(0, 40, (2 * POSITIONS + 3,))
    with torch.inference_mode():
        ours = position_losses(model, hidden, labels)
        whole = torch.nn.functional.cross_entropy(model.get_output_embeddings()(hidden), labels, reduction="none")
        assert torch.allclose(ours, whole, atol=1e-5)
        assert len(position_losses(model, hidden[:0], labels[:0])) == 0


def test_a_row_without_a_masked_token_has_no_loss(model: PreTrainedModel) -> None:
    assert mean_losses(model, 0, [row(10, 0, 1), row(10, 3, 2)], 2)[0] == (0.0, 0)


def test_batches_hold_rows_of_one_rounded_length() -> None:
    lengths = [1, 33, 32, 64, 65, 2, 31]
    made = batches(lengths, 2)
    assert sorted(at for each in made for at in each) == list(range(7))
    assert all(len(each) <= 2 and len({bucket(lengths[at]) for at in each}) == 1 for each in made)
