"""Student and EMA teacher: what each says of its views, and the losses between them."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nnssl_reg.architectures.primus_encoder import Tokens, build_encoder
from nnssl_reg.architectures.projection_head import ProjectionHead
from nnssl_reg.planning.plans import NetworkPlan, PretrainingPlan
from nnssl_reg.pretraining.losses import centred, cross_entropy, gram, koleo, moved_centre, sinkhorn
from nnssl_reg.pretraining.masking import choose_tokens
from nnssl_reg.pretraining.processes import ALONE, Processes, assembled
from nnssl_reg.pretraining.schedules import StepSettings
from nnssl_reg.pretraining.views import Views


@dataclass(frozen=True)
class ChosenTokens:
    """The patch tokens in the losses: flat indices into (B * N), masked ones first; the weights of each part add up to 1."""

    index: torch.Tensor  # (M + V,)
    masked_weights: torch.Tensor  # (M,)
    visible_weights: torch.Tensor  # (V,)


@dataclass(frozen=True)
class Targets:
    """The teacher's probabilities: of all samples' class tokens (B, K) and of the chosen patch tokens (M + V, K)."""

    class_tokens: torch.Tensor
    patch_tokens: torch.Tensor
    tokens: Tokens  # of its encoder, for the monitors


@dataclass(frozen=True)
class Outputs:
    """The student's cosines with the prototypes, and its unmasked samples' tokens, (U, D) and (U, N, D).

    class_tokens: (U + F, K), of the unmasked samples and of the further views; patch_tokens: (M + V, K), the chosen ones.
    """

    class_tokens: torch.Tensor
    patch_tokens: torch.Tensor
    class_features: torch.Tensor
    patch_features: torch.Tensor


class Network(nn.Module):
    """An encoder with one head for class tokens and one for patch tokens."""

    def __init__(self, network: NetworkPlan, plan: PretrainingPlan, generator: torch.Generator):
        super().__init__()
        self.encoder = build_encoder(**vars(network), generator=generator)
        sizes = (network.embed_dim, plan.head_hidden_dim, plan.head_bottleneck_dim, plan.prototypes)
        self.class_head = ProjectionHead(*sizes, generator=generator)
        self.patch_head = ProjectionHead(*sizes, generator=generator)

    def forward(self, images: torch.Tensor, mask: torch.Tensor, index: torch.Tensor,
                further: tuple[torch.Tensor, ...] = ()) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """The fields of Outputs, in order. index: of the chosen patch tokens, flat; further: views for the class loss alone."""
        tokens = self.encoder(images, mask)
        more = [self.encoder(views).class_token for views in further]
        whole = ~mask.flatten(1).any(dim=1)
        features = tokens.class_token[whole]  # (U, D)
        patches = tokens.patch_tokens.flatten(0, 1)[index]  # (M + V, D)
        classes = self.class_head(torch.cat((features, *more)))
        return classes, self.patch_head(patches), features, tokens.patch_tokens[whole]


class StudentTeacher(nn.Module):
    """The pair. The teacher starts as the student and follows it as a moving average; gradients reach the student only.

    processes: those that share a batch.
    """

    def __init__(self, network: NetworkPlan, plan: PretrainingPlan, generator: torch.Generator, processes: Processes = ALONE):
        super().__init__()
        self.plan, self.processes = plan, processes
        self.student = Network(network, plan, generator)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        if plan.gram_weight > 0:
            self.anchor_encoder = copy.deepcopy(self.teacher.encoder)
            self.register_buffer("anchored", torch.zeros((), dtype=torch.bool))
        self.register_buffer("class_centre", torch.zeros(plan.prototypes))
        self.register_buffer("patch_centre", torch.zeros(plan.prototypes))

    def losses(
        self, views: Views, settings: StepSettings, generator: torch.Generator, student: Callable | None = None
    ) -> tuple[dict[str, torch.Tensor], Targets]:
        """The loss terms by name, "total" their weighted sum, and the teacher's targets for the monitors.

        All are the whole batch's; their gradients are this process's share, which add up to the whole batch's.
        student: what to call in place of self.student, the same network wrapped.
        """
        chosen = self.choose(views.all_masks, generator)
        targets = self.teacher_targets(views, chosen, settings.teacher_temperature)
        outputs = Outputs(*(student or self.student)(views.student, views.mask, chosen.index, views.further))
        terms = self.compare(targets, outputs, chosen, views)
        if settings.gram_weight > 0:
            terms["gram_loss"] = self.gram_loss(views, outputs.patch_features, generator)
            terms["total"] = terms["total"] + settings.gram_weight * terms["gram_loss"]
        return terms, targets

    def choose(self, mask: torch.Tensor, generator: torch.Generator) -> ChosenTokens:
        """Masked tokens, and visible ones of all samples, at most plan.loss_tokens of each per sample.

        mask: of the whole batch; chosen are tokens of the own samples.
        """
        masked, masked_weights = choose_tokens(mask.flatten(1), self.plan.loss_tokens, generator, self.processes)
        visible, visible_weights = choose_tokens(~mask.flatten(1), self.plan.loss_tokens, generator, self.processes)
        return ChosenTokens(torch.cat((masked, visible)), masked_weights, visible_weights)

    @torch.no_grad()
    def teacher_targets(self, views: Views, chosen: ChosenTokens, temperature: float) -> Targets:
        """The teacher sees whole images."""
        with assembled(self.teacher):
            tokens = self.teacher.encoder(views.teacher)
            class_logits = self.teacher.class_head(tokens.class_token)  # (B, K)
            patch_logits = self.teacher.patch_head(tokens.patch_tokens.flatten(0, 1)[chosen.index])  # (M + V, K)
        if self.plan.centering == "sinkhorn":
            patch_targets = sinkhorn(patch_logits, temperature, processes=self.processes)
        else:
            patch_targets = centred(patch_logits, self.patch_centre, temperature)
            self.patch_centre.copy_(moved_centre(self.patch_centre, patch_logits, processes=self.processes))
        # a batch has too few class tokens to share K prototypes among, as Sinkhorn-Knopp would
        class_targets = centred(class_logits, self.class_centre, temperature)
        self.class_centre.copy_(moved_centre(self.class_centre, class_logits, processes=self.processes))
        return Targets(class_targets, patch_targets, tokens)

    def gram_loss(self, views: Views, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """How far the similarities among some patch tokens of the unmasked samples are from those that the anchor sees."""
        whole = whole_samples(views.mask)
        some = torch.randperm(tokens.shape[1], generator=generator, device=tokens.device)[: self.plan.loss_tokens]
        loss = tokens.sum() * 0.0  # where this process has no whole sample
        with assembled(self.anchor_encoder):
            if whole.any():
                with torch.no_grad():
                    anchors = self.anchor_encoder(views.teacher[whole]).patch_tokens
                share = whole.sum() / whole_samples(views.all_masks).sum()
                loss = gram(tokens[:, some], anchors[:, some]) * share
        return self.processes.joined({"gram_loss": loss})["gram_loss"]

    def compare(self, targets: Targets, outputs: Outputs, chosen: ChosenTokens, views: Views) -> dict[str, torch.Tensor]:
        """The loss terms by name and their weighted sum, "total". Every view has the same weight in the class loss."""
        plan, masked = self.plan, len(chosen.masked_weights)
        further = sum(map(len, views.further)) // len(views.mask)  # of each sample
        seen = torch.cat((targets.class_tokens[whole_samples(views.mask)], targets.class_tokens.repeat(further, 1)))
        compared = whole_samples(views.all_masks).sum() + further * len(views.all_masks)
        equal = (1 / compared.clamp(min=1)).expand(len(seen))
        terms = self.processes.joined({
            "class_loss": cross_entropy(seen, outputs.class_tokens, plan.student_temperature, equal),
            "masked_loss": cross_entropy(targets.patch_tokens[:masked], outputs.patch_tokens[:masked],
                                    plan.student_temperature, chosen.masked_weights),
            "visible_loss": cross_entropy(targets.patch_tokens[masked:], outputs.patch_tokens[masked:],
                                     plan.student_temperature, chosen.visible_weights),
        })  # fmt: skip
        terms["koleo"] = koleo(self.processes.gathered(outputs.class_features))
        weights = {"class_loss": plan.class_weight, "masked_loss": plan.patch_weight, "visible_loss": plan.visible_weight,
                   "koleo": plan.koleo_weight}  # fmt: skip
        return {**terms, "total": sum(weights[name] * term for name, term in terms.items())}

    @torch.no_grad()
    def anchor(self) -> None:
        """The first time: from now on the Gram loss holds to the teacher as it is."""
        if not self.anchored:
            self.anchor_encoder.load_state_dict(self.teacher.encoder.state_dict())
            self.anchored.fill_(True)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student; each process moves its shares, if they are sharded."""
        teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)

    @property
    def log_prototypes(self) -> float:
        """ln K: the loss of a student that knows nothing."""
        return math.log(self.plan.prototypes)


def whole_samples(mask: torch.Tensor) -> torch.Tensor:
    """Which samples of masks (B, X', Y', Z') have no masked token, (B,) bool."""
    return ~mask.flatten(1).any(dim=1)
