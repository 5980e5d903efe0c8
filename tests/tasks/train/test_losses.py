"""The invariants of the losses: identities, gradients, analytic values, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.train.losses import (
    advantage_at,
    advantage_loss,
    advantages,
    coarse_advantage_at,
    coarse_kl_at,
    coverage,
    dpo_loss,
    forward_kl,
    kl_at,
    log_probabilities,
    log_tail,
    odds_ratio_loss,
)

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def three(seed: int, k: int = 5, vocabulary: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher, reference = draw(seed, 3, k, vocabulary)
    return student, teacher, reference


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of logits, written down as in a textbook."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


# ---- identities ----


@quick
@given(seeds)
def test_the_reference_expects_a_disadvantage_and_the_teacher_an_advantage(seed: int) -> None:
    _, teacher, reference = three(seed)
    advantage = advantages(teacher, reference)
    torch.testing.assert_close(-advantage_at(reference, advantage), -kl(reference, teacher))
    torch.testing.assert_close(-advantage_at(teacher, advantage), kl(teacher, reference))


@quick
@given(seeds)
def test_the_advantage_loss_is_a_difference_of_two_divergences(seed: int) -> None:
    student, teacher, reference = three(seed)
    loss = advantage_at(student, advantages(teacher, reference))
    torch.testing.assert_close(loss, kl(student, teacher) - kl(student, reference))


@quick
@given(seeds)
def test_a_student_equal_to_the_teacher_has_no_divergence(seed: int) -> None:
    student, teacher, _ = three(seed)
    assert kl_at(teacher, teacher).abs().max() < 1e-12
    torch.testing.assert_close(kl_at(student, teacher), kl(teacher, student))


@quick
@given(seeds)
def test_log_ratios_of_a_response_add_up_to_its_implicit_reward(seed: int) -> None:
    _, teacher, reference = three(seed)
    said = torch.arange(5)
    taken = advantages(teacher, reference).gather(-1, said[:, None]).sum()
    reward = log_probabilities(teacher, said).sum() - log_probabilities(reference, said).sum()
    torch.testing.assert_close(taken, reward)


# ---- gradients ----


@quick
@given(seeds)
def test_the_gradient_of_the_divergence_is_student_minus_teacher(seed: int) -> None:
    student, teacher, _ = three(seed)
    student.requires_grad_()
    kl_at(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - teacher.softmax(-1))


@quick
@given(seeds, st.floats(-5, 5))
def test_the_gradient_of_the_advantage_is_known_and_blind_to_a_shift(seed: int, shift: float) -> None:
    student, teacher, reference = three(seed)
    student.requires_grad_()
    advantage = advantages(teacher, reference)
    p = student.detach().softmax(-1)
    expected = -p * (advantage - (p * advantage).sum(-1, keepdim=True))
    for same in (advantage, advantage + shift, teacher - reference):  # raw logits differ by a shift per position
        student.grad = None
        advantage_at(student, same).sum().backward()
        torch.testing.assert_close(student.grad, expected)
    assert student.grad.sum(-1).abs().max() < 1e-12


@quick
@given(seeds)
def test_equal_teachers_give_no_loss_and_no_gradient_at_all(seed: int) -> None:
    student, teacher, _ = three(seed)
    student.requires_grad_()
    loss = advantage_at(student, advantages(teacher, teacher.clone()))
    loss.sum().backward()
    assert torch.equal(loss.detach(), torch.zeros(5, dtype=torch.float64))
    assert not student.grad.any()


def test_no_gradient_reaches_a_teacher() -> None:
    student, teacher, reference = (each.requires_grad_() for each in three(0))
    (kl_at(student, teacher).sum() + advantage_at(student, advantages(teacher, reference)).sum()).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert reference.grad is None


# ---- bounds and signs ----


@quick
@given(seeds)
def test_the_advantage_loss_lies_between_the_best_and_the_worst_token(seed: int) -> None:
    student, teacher, reference = three(seed)
    advantage = advantages(teacher, reference)
    loss = advantage_at(student, advantage)
    assert (-advantage.amax(-1) <= loss + 1e-12).all()
    assert (loss <= -advantage.amin(-1) + 1e-12).all()
    torch.testing.assert_close(advantage_at(student, 3 * advantage), 3 * loss)
    torch.testing.assert_close(advantage_at(student, advantages(reference, teacher)), -loss)


@quick
@given(seeds)
def test_the_clip_of_the_released_code_forgets_what_to_avoid(seed: int) -> None:
    student, teacher, reference = three(seed)
    advantage = advantages(teacher, reference)
    clipped = advantages(teacher, reference, (0.0, 1.0))
    assert advantage.amin() < 0, "a normalised difference has both signs"
    assert clipped.amin() == 0
    loss = advantage_at(student, clipped)
    assert ((loss >= -1) & (loss <= 0)).all()


def test_the_advantage_alone_makes_a_student_certain_of_the_best_token() -> None:
    _, teacher, reference = three(1, k=1)
    logits = torch.zeros(1, 11, dtype=torch.float64, requires_grad=True)
    advantage = advantages(teacher, reference)
    best = int(advantage.argmax())
    certainty = []
    for _ in range(300):
        logits.grad = None
        advantage_at(logits, advantage).sum().backward()
        with torch.no_grad():
            logits -= 2 * logits.grad
        certainty.append(float(logits.detach().softmax(-1)[0, best]))
    assert certainty == sorted(certainty)
    assert certainty[-1] > 0.99


def test_the_divergence_makes_a_student_its_teacher() -> None:
    _, teacher, _ = three(1, k=1)
    logits = torch.zeros(1, 11, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        logits.grad = None
        kl_at(logits, teacher).sum().backward()
        with torch.no_grad():
            logits -= logits.grad
    torch.testing.assert_close(logits.softmax(-1).detach(), teacher.softmax(-1), atol=1e-4, rtol=0)


# ---- values that were computed by hand ----


def test_two_tokens() -> None:
    student = torch.tensor([[[0.3, -0.4]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[[0.8, 0.2]]], dtype=torch.float64).log()
    reference = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64).log()
    loss = advantage_loss(student, teacher, reference, torch.ones(1, 1))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.010014208851836, abs=1e-14)
    assert float(student.grad[0, 0, 0]) == pytest.approx(-0.307359306033926, abs=1e-14)


def test_a_uniform_student_averages_and_a_certain_one_picks() -> None:
    weights = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)
    reference = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    product = reference * weights
    advantage = advantages(product.log(), reference.log())
    torch.testing.assert_close(advantage, weights.log() - product.sum().log())
    uniform = torch.zeros(1, 3, dtype=torch.float64)
    torch.testing.assert_close(advantage_at(uniform, advantage), -advantage.mean(-1))
    certain = torch.tensor([[0.0, 1e4, 0.0]], dtype=torch.float64, requires_grad=True)
    picked = advantage_at(certain, advantage)
    picked.sum().backward()
    torch.testing.assert_close(picked.detach(), -advantage[:, 1])
    assert not certain.grad.any()


def test_a_sharp_teacher_against_a_uniform_reference() -> None:
    vocabulary, rest = 7, 0.05
    teacher = torch.full((1, vocabulary), rest / (vocabulary - 1), dtype=torch.float64)
    teacher[0, 0] = 1 - rest
    uniform = torch.zeros(1, vocabulary, dtype=torch.float64)
    inside = math.log(1 - rest) + (vocabulary - 1) * math.log(rest / (vocabulary - 1))
    expected = -math.log(vocabulary) - inside / vocabulary
    assert float(advantage_at(uniform, advantages(teacher.log(), uniform))) == pytest.approx(expected, abs=1e-12)


def test_a_coarse_divergence_by_hand() -> None:
    student = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    ids, log_q = torch.tensor([[1]]), torch.tensor([[0.75]], dtype=torch.float64).log()
    expected = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.75)
    assert float(coarse_kl_at(student, ids, log_q, log_tail(log_q))) == pytest.approx(expected, abs=1e-12)


def test_dpo_starts_at_ln_2_and_orpo_compares_odds() -> None:
    nothing = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(dpo_loss(nothing, nothing, 0.1), torch.full_like(nothing, math.log(2)))
    chosen, rejected = torch.tensor([0.5, 0.999999999]).double().log(), torch.tensor([0.2, 1e-9]).double().log()
    odds = [0.5 / 0.5 / (0.2 / 0.8), 0.999999999 / 1e-9 / (1e-9 / (1 - 1e-9))]
    expected = torch.tensor([math.log1p(1 / each) for each in odds], dtype=torch.float64)
    torch.testing.assert_close(odds_ratio_loss(chosen, rejected)[0], expected[0])
    assert torch.isfinite(odds_ratio_loss(chosen, rejected)).all()


# ---- batches and masks ----


def batch(seed: int) -> tuple[list[Tensor], Tensor]:
    logits = list(draw(seed, 3, 4, 6, 11))
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1], [1] * 6, [0] * 6])
    return logits, mask


def losses(logits: list[Tensor], mask: Tensor) -> Tensor:
    student, teacher, reference = logits
    return torch.stack([forward_kl(student, teacher, mask), advantage_loss(student, teacher, reference, mask)])


@quick
@given(seeds)
def test_the_mean_is_over_masked_positions_alone(seed: int) -> None:
    logits, mask = batch(seed)
    student, teacher, reference = logits
    every = [(kl(q, p), kl(p, q) - kl(p, r)) for p, q, r in zip(student, teacher, reference, strict=True)]
    kept = torch.stack([torch.stack(each) for each in every]).permute(1, 0, 2)[:, mask.bool()]
    torch.testing.assert_close(losses(logits, mask), kept.mean(-1))


@quick
@given(seeds)
def test_padding_order_and_unmasked_logits_change_nothing(seed: int) -> None:
    logits, mask = batch(seed)
    expected = losses(logits, mask)
    padded = [torch.cat([each, draw(seed + 1, 4, 3, 11)], 1) for each in logits]
    torch.testing.assert_close(losses(padded, torch.cat([mask, torch.zeros(4, 3, dtype=mask.dtype)], 1)), expected)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(losses([each[order] for each in logits], mask[order]), expected)
    prompts_edited = [torch.where(mask.bool()[..., None], each, each + 100) for each in logits]
    torch.testing.assert_close(losses(prompts_edited, mask), expected)


def test_nothing_masked_is_nothing_lost() -> None:
    logits, mask = batch(0)
    logits[0].requires_grad_()
    loss = losses(logits, torch.zeros_like(mask)).sum()
    loss.backward()
    assert float(loss) == 0
    assert not logits[0].grad.any()


def test_half_precision_is_computed_in_fp32() -> None:
    logits, mask = batch(0)
    half = [each.bfloat16() for each in logits]
    result = losses(half, mask)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, losses([each.float() for each in half], mask), atol=1e-6, rtol=0)


# ---- the compact form ----


def top(log_p: Tensor, *more: Tensor, k: int) -> Tensor:
    """The union of the k likeliest tokens of several models, filled up with -1."""
    unions = [sorted({int(i) for each in (log_p, *more) for i in each[at].topk(k).indices}) for at in range(len(log_p))]
    width = max(map(len, unions))
    return torch.tensor([union + [-1] * (width - len(union)) for union in unions])


def coarse_kl(student: Tensor, log_q: Tensor, ids: Tensor) -> Tensor:
    cells, tail = cells_of(log_q, ids)
    return coarse_kl_at(student, ids, cells, tail)


def coarse_advantage(student: Tensor, log_q: Tensor, log_r: Tensor, ids: Tensor) -> Tensor:
    (cells_q, tail_q), (cells_r, tail_r) = cells_of(log_q, ids), cells_of(log_r, ids)
    return coarse_advantage_at(student, ids, cells_q - cells_r, tail_q - tail_r)


def cells_of(log_p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    cells = log_p.gather(-1, ids.clamp(min=0))
    return cells, log_tail(cells.masked_fill(ids < 0, -float("inf")))


@quick
@given(seeds)
def test_a_coarse_divergence_grows_with_its_cells_up_to_the_whole(seed: int) -> None:
    student, teacher, _ = three(seed)
    log_q = teacher.log_softmax(-1)
    whole = kl_at(student, teacher)
    before = torch.zeros_like(whole)
    for k in range(1, 11):
        coarse = coarse_kl(student, log_q, log_q.topk(k).indices)
        assert (before <= coarse + 1e-6).all()
        assert (coarse <= whole + 1e-6).all()
        before = coarse
    torch.testing.assert_close(before, whole, atol=1e-5, rtol=1e-5)  # all but one token: the tail is the last


@quick
@given(seeds)
def test_a_coarse_advantage_over_all_tokens_is_the_whole(seed: int) -> None:
    student, teacher, reference = three(seed)
    ids = torch.arange(11).expand(5, 11)
    coarse = coarse_advantage(student, teacher.log_softmax(-1), reference.log_softmax(-1), ids)
    torch.testing.assert_close(coarse, advantage_at(student, advantages(teacher, reference)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(coverage(student, ids), torch.ones(5, dtype=torch.float64))


@quick
@given(seeds)
def test_cells_that_fill_up_change_nothing(seed: int) -> None:
    student, teacher, reference = three(seed)
    log_q, log_r = teacher.log_softmax(-1), reference.log_softmax(-1)
    ids = top(log_q, log_r, k=3)
    more = torch.cat([ids, torch.full((5, 2), -1)], 1)
    for score in (
        lambda ids: coarse_kl(student, log_q, ids),
        lambda ids: coarse_advantage(student, log_q, log_r, ids),
        lambda ids: coverage(student, ids),
    ):
        torch.testing.assert_close(score(more), score(ids))
        assert torch.isfinite(score(ids)).all()


@quick
@given(seeds)
def test_the_coarse_gradient_reaches_tokens_outside_the_cells(seed: int) -> None:
    student, teacher, reference = three(seed)
    student.requires_grad_()
    log_q, log_r = teacher.log_softmax(-1), reference.log_softmax(-1)
    ids = top(log_q, log_r, k=2)
    coarse_advantage(student, log_q, log_r, ids).sum().backward()
    outside = torch.ones_like(student, dtype=torch.bool).scatter(-1, ids.clamp(min=0), False)
    assert student.grad[outside].abs().max() > 0
    assert student.grad.sum(-1).abs().max() < 1e-9
