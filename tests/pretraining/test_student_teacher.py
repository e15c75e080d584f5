"""Student and teacher: what enters the losses, who learns, and what a pair that agrees scores."""

from dataclasses import replace

import pytest
import torch

from nnssl_reg.pretraining.losses import centred, gram, koleo, sinkhorn
from nnssl_reg.pretraining.schedules import settings_at
from nnssl_reg.pretraining.student_teacher import StudentTeacher
from nnssl_reg.pretraining.views import Views, draw_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair_of(configuration, plan) -> StudentTeacher:
    network = replace(configuration.network, drop_path_rate=0.0)
    return StudentTeacher(network, plan, generator(1))


def views_of(plan, seed: int = 2) -> Views:
    images = torch.rand(2, 4, 1, 8, 8, 8, generator=generator(seed)) * 2 - 1
    masks = draw_masks(4, plan, (4, 4, 4), generator(seed))
    return Views(images[0], images[1], masks, masks)


@pytest.mark.parametrize("centering", ["sinkhorn", "centre"])
def test_the_losses_are_the_published_ones_on_the_tokens_they_speak_of(configuration, plan, centering):
    plan = replace(plan, centering=centering, loss_tokens=1000)
    pair, views, settings = pair_of(configuration, plan), views_of(plan), settings_at(1, plan)
    found, _ = pair.losses(views, settings, generator())

    teacher, student = pair.teacher.encoder(views.teacher), pair.student.encoder(views.student, views.mask)
    mask = views.mask.flatten(1)
    # all masked tokens and all visible ones, image by image
    order = torch.cat((mask.flatten().nonzero().flatten(), (~mask).flatten().nonzero().flatten()))
    logits = pair.teacher.patch_head(teacher.patch_tokens.flatten(0, 1)[order])
    zero = torch.zeros(plan.prototypes)
    temperature = settings.teacher_temperature
    targets = sinkhorn(logits, temperature) if centering == "sinkhorn" else centred(logits, zero, temperature)
    log_student = torch.log_softmax(pair.student.patch_head(student.patch_tokens.flatten(0, 1)[order]) / 0.1, dim=-1)
    each = torch.zeros(mask.numel())
    each[order] = -(targets * log_student).sum(dim=-1).detach()
    each = each.view(mask.shape)
    masked = torch.stack([each[i][mask[i]].mean() for i in range(2)]).mean()  # the first two of four are masked
    visible = torch.stack([each[i][~mask[i]].mean() for i in range(4)]).mean()
    class_targets = centred(pair.teacher.class_head(teacher.class_token[2:]), zero, temperature)
    class_log = torch.log_softmax(pair.student.class_head(student.class_token[2:]) / 0.1, dim=-1)
    spread = koleo(student.class_token[2:])
    expected = {"masked_loss": masked, "visible_loss": visible, "koleo": spread,
                "class_loss": -(class_targets * class_log).sum(dim=-1).mean()}  # fmt: skip
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name
    total = sum(expected[name] * weight for name, weight in
                zip(expected, (plan.patch_weight, plan.visible_weight, plan.koleo_weight, plan.class_weight)))  # fmt: skip
    assert float(found["total"].detach()) == pytest.approx(float(total.detach()), rel=1e-4)


def test_gradients_reach_every_part_of_the_student_and_nothing_of_the_teacher(configuration, plan):
    pair = pair_of(configuration, plan)
    losses, _ = pair.losses(views_of(plan), settings_at(0, plan), generator())
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.student.parameters())
    assert all(p.grad is None for p in pair.teacher.parameters())


def test_at_most_the_planned_tokens_of_each_crop_enter_the_patch_losses(configuration, plan):
    plan = replace(plan, loss_tokens=3)
    chosen = pair_of(configuration, plan).choose(views_of(plan).mask, generator())
    assert len(chosen.masked_weights) == 2 * 3
    assert len(chosen.visible_weights) == 4 * 3
    assert len(chosen.index) == 18


def test_the_teacher_moves_towards_the_student_by_its_momentum(configuration, plan):
    pair = pair_of(configuration, plan)
    before = [p.clone() for p in pair.teacher.parameters()]
    with torch.no_grad():
        for p in pair.student.parameters():
            p.add_(1.0)
    pair.update_teacher(0.9)
    for old, new in zip(before, pair.teacher.parameters()):
        torch.testing.assert_close(new, old + 0.1)


def test_one_crop_alone_trains_without_a_class_loss(configuration, plan):
    views = views_of(plan)
    one = Views(views.teacher[:1], views.student[:1], views.mask[:1], views.mask[:1])
    losses, targets = pair_of(configuration, plan).losses(one, settings_at(0, plan), generator())
    assert losses["class_loss"].item() == 0 == losses["koleo"].item()
    assert losses["total"].isfinite() and len(targets.class_tokens) == 1


def test_further_views_learn_what_the_teacher_says_of_the_whole_crops(configuration, plan):
    pair, views, settings = pair_of(configuration, plan), views_of(plan), settings_at(1, plan)
    further = torch.rand(8, 1, 8, 4, 4, generator=generator(3)), torch.rand(4, 1, 8, 8, 8, generator=generator(4))
    found, _ = pair.losses(replace(views, further=further), settings, generator())
    targets = centred(pair.teacher.class_head(pair.teacher.encoder(views.teacher).class_token), torch.zeros(plan.prototypes),
                      settings.teacher_temperature)  # fmt: skip
    seen = [(pair.student.encoder(views.student, views.mask).class_token[2:], targets[2:])]  # the first two of four are masked
    seen += [(pair.student.encoder(part).class_token, targets) for part in (further[0][:4], further[0][4:], further[1])]
    each = [-(target * torch.log_softmax(pair.student.class_head(token) / 0.1, dim=-1)).sum(dim=-1) for token, target in seen]
    assert float(found["class_loss"].detach()) == pytest.approx(float(torch.cat(each).mean().detach()), rel=1e-4)
    assert len(torch.cat(each)) == 2 + 3 * 4


def test_gram_anchoring_holds_whole_samples_to_the_teacher_as_it_was(configuration, plan):
    plan = replace(plan, gram_weight=2.0, gram_start_step=3, loss_tokens=1000)
    pair, views = pair_of(configuration, plan), views_of(plan)
    assert "gram_loss" not in pair.losses(views, settings_at(2, plan), generator())[0]
    pair.anchor()
    was = pair.teacher.encoder(views.teacher[2:]).patch_tokens
    with torch.no_grad():
        for p in pair.teacher.parameters():
            p.mul_(1.5)
    pair.anchor()  # only the first time counts
    found, _ = pair.losses(views, settings_at(3, plan), generator())
    tokens = pair.student.encoder(views.student, views.mask).patch_tokens[2:]
    assert float(found["gram_loss"].detach()) == pytest.approx(float(gram(tokens, was).detach()), rel=1e-4)
    weights = {"class_loss": plan.class_weight, "masked_loss": plan.patch_weight, "visible_loss": plan.visible_weight,
               "koleo": plan.koleo_weight}  # fmt: skip
    rest = sum(weight * found[name] for name, weight in weights.items())
    assert float(found["total"].detach()) == pytest.approx(float((rest + 2 * found["gram_loss"]).detach()), rel=1e-5)
    found["total"].backward()
    assert all(p.grad is None for p in pair.anchor_encoder.parameters())
