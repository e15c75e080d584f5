"""Losses against the published formulas, written plainly."""

import math

import pytest
import torch

from nnssl_reg.pretraining.losses import centred, cross_entropy, gram, koleo, moved_centre, sinkhorn


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_softmax(values):
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def test_dino_loss_is_the_cross_entropy_of_sharpened_centred_teacher_and_student():
    teacher, student, centre = randn(4, 6), randn(4, 6, seed=1), randn(6, seed=2)
    teacher_temperature, student_temperature = 0.05, 0.1
    expected = 0.0
    for t, s in zip(teacher.tolist(), student.tolist()):
        p = plain_softmax([(a - c) / teacher_temperature for a, c in zip(t, centre.tolist())])
        q = plain_softmax([b / student_temperature for b in s])
        expected += -sum(a * math.log(b) for a, b in zip(p, q)) / 4  # H(a, b) = -a log b (Caron et al. 2021, eq. 1 and 2)
    targets = centred(teacher, centre, teacher_temperature)
    assert float(cross_entropy(targets, student, student_temperature, torch.full((4,), 1 / 4))) == pytest.approx(
        expected, rel=1e-5
    )


def test_ibot_loss_averages_over_the_masked_tokens_of_each_image_and_then_over_images():
    targets, student = torch.softmax(randn(5, 7), dim=-1), randn(5, 7, seed=1)
    images = [[0, 1, 2], [3, 4]]  # three masked tokens in one image, two in the other
    expected = 0.0
    for image in images:
        per_image = 0.0
        for i in image:  # -m_i P_t(u_i) log P_s(u_i) / sum m (Zhou et al. 2022, eq. 2)
            q = plain_softmax([b / 0.1 for b in student[i].tolist()])
            per_image += -sum(a * math.log(b) for a, b in zip(targets[i].tolist(), q))
        expected += per_image / len(image) / len(images)
    weights = torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])
    assert float(cross_entropy(targets, student, 0.1, weights)) == pytest.approx(expected, rel=1e-5)


def test_a_student_that_knows_nothing_has_the_loss_ln_k():
    targets = torch.softmax(randn(3, 50), dim=-1)
    assert float(cross_entropy(targets, torch.zeros(3, 50), 0.1, torch.full((3,), 1 / 3))) == pytest.approx(
        math.log(50), rel=1e-6
    )


def test_koleo_is_minus_the_mean_log_of_n_times_the_distance_to_the_nearest_neighbour():
    tokens = randn(6, 4)
    unit = [[v / math.sqrt(sum(x * x for x in row)) for v in row] for row in tokens.tolist()]
    expected = 0.0
    for i, a in enumerate(unit):
        nearest = min(math.dist(a, b) for j, b in enumerate(unit) if j != i)
        expected += -math.log(6 * nearest) / 6
    assert float(koleo(tokens)) == pytest.approx(expected, rel=1e-4)


def test_koleo_pushes_close_tokens_apart_and_survives_equal_ones():
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.05], [-1.0, 0.0]], requires_grad=True)
    koleo(tokens).backward()
    assert tokens.grad[0, 1] > 0 > tokens.grad[1, 1]  # descending moves them apart
    same = torch.ones(3, 2, requires_grad=True)
    koleo(same).backward()
    assert same.grad.isfinite().all()
    assert float(koleo(torch.ones(1, 2))) == 0.0


def test_sinkhorn_rows_sum_to_one_and_prototypes_share_the_tokens_evenly():
    logits = torch.nn.functional.normalize(randn(64, 8), dim=-1)
    assignment = sinkhorn(logits, 0.1, iterations=100)
    torch.testing.assert_close(assignment.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(assignment.sum(dim=0), torch.full((8,), 64 / 8), rtol=1e-3, atol=1e-3)


def test_three_sinkhorn_iterations_are_those_of_swav():
    logits, temperature = randn(10, 4) * 0.3, 0.05
    q = [[math.exp(v / temperature) for v in column] for column in logits.T.tolist()]  # prototypes x tokens, as published
    total = sum(map(sum, q))
    q = [[v / total for v in row] for row in q]
    for _ in range(3):
        q = [[v / sum(row) / 4 for v in row] for row in q]
        columns = [sum(row[j] for row in q) for j in range(10)]
        q = [[row[j] / columns[j] / 10 for j in range(10)] for row in q]
    expected = torch.tensor(q).T * 10
    torch.testing.assert_close(sinkhorn(logits, temperature, iterations=3), expected, rtol=1e-4, atol=1e-6)


def test_sinkhorn_stays_finite_at_the_lowest_temperatures():
    logits = torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, -1.0]])
    assignment = sinkhorn(logits, 0.01)
    assert assignment.isfinite().all()
    torch.testing.assert_close(assignment.sum(dim=1), torch.ones(2))


def test_the_centre_is_a_running_mean():
    logits = randn(5, 3)
    torch.testing.assert_close(moved_centre(torch.ones(3), logits, 0.9), 0.9 * torch.ones(3) + 0.1 * logits.mean(dim=0))


def test_the_gram_loss_is_that_of_the_published_formula_and_blind_to_a_common_rotation():
    generator = torch.Generator().manual_seed(0)
    tokens, anchors = (torch.randn(2, 5, 4, generator=generator) for _ in range(2))
    total = 0.0
    for b in range(2):
        for i in range(5):
            for j in range(5):
                ours = torch.cosine_similarity(tokens[b, i], tokens[b, j], dim=0)
                theirs = torch.cosine_similarity(anchors[b, i], anchors[b, j], dim=0)
                total += float((ours - theirs) ** 2)
    assert float(gram(tokens, anchors)) == pytest.approx(total / 50, rel=1e-4)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    assert float(gram(3 * tokens @ rotation, tokens)) == pytest.approx(0, abs=1e-10)
