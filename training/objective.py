"""What nano is trained for: the batches that it sees and the losses of its answers."""

import torch
import torch.nn.functional as F
from textures import Source, integer
from torch import Generator, Tensor

from training.batches import SHUFFLED, Batch, Drawn, draw
from training.student import Student, normalised
from training.teacher import Teacher

TEMPERATURE = 0.1


class Objective:
    """Draw batches and compute their losses. Each batch is used twice, because drawing costs as much as learning: the
    second time its clips are mirrored or run backwards.

    `samples`: batches to draw first, for the mean of the teacher's features, which is subtracted from them.
    """

    def __init__(self, source: Source, device: str, generator: Generator, samples: list[Batch]) -> None:
        self.source, self.device, self.generator = source, device, generator
        self.teacher = Teacher().to(device)
        self.used_once: dict[str, tuple[Drawn, Tensor]] = {}
        self.mean = torch.zeros(())
        self.mean = torch.cat([self.new_batch(batch)[1] for batch in samples]).mean(0)

    def next_batch(self, batch: Batch) -> tuple[Drawn, Tensor]:
        """Return clips, and the centred features of the teacher for each scene (pairs, 1280).

        Mirrored clips keep the features of the scene.
        """
        if (earlier := self.used_once.pop(str(batch), None)) is not None:
            drawn, features = earlier
            backwards = integer(0, 2, self.generator) and not batch.is_picture
            return drawn.backwards() if backwards else drawn.mirrored(), features
        self.used_once[str(batch)] = self.new_batch(batch)
        return self.used_once[str(batch)]

    def new_batch(self, batch: Batch) -> tuple[Drawn, Tensor]:
        """Draw a batch. Return it with the centred features of the teacher (pairs, 1280)."""
        drawn = draw(batch, self.source, self.generator)
        while bool((drawn.order == SHUFFLED).all()):  # shuffled clips have no motion to learn
            drawn = draw(batch, self.source, self.generator)
        return drawn, self.teacher(255 * drawn.frames.to(self.device)) - self.mean

    def losses(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a new batch, and as shares: correct motions and orders, and nearest other views."""
        drawn, features = self.next_batch(batch)
        stage4, embedding = student(normalised(drawn.pixels.to(self.device)))
        whole = drawn.order.to(self.device) != SHUFFLED
        flow = drawn.flow.to(self.device) * 50  # so that a fast motion, 0.02, is 1
        moved = F.smooth_l1_loss(student.flow(stage4), flow, reduction="none").mean((1, 2, 3, 4))
        appearance = F.cosine_similarity(student.appearance(embedding), features.repeat(2, 1), dim=1)
        pair_loss, share_found = pair_losses(embedding, batch.pairs)
        found = {
            "flow": (moved * whole).sum() / whole.sum(),
            "pairs": pair_loss,
            "teacher": 1 - appearance.mean(),
            "found": share_found,
        }
        return found if batch.is_picture else found | self.motion_losses(student, embedding, drawn)

    def motion_losses(self, student: Student, embedding: Tensor, drawn: Drawn) -> dict[str, Tensor]:
        """Return the losses, and the shares of correct answers, that only clips have and pictures do not."""
        motions, order, slowing = (x.to(self.device) for x in (drawn.motions, drawn.order, drawn.slowing))
        whole = order != SHUFFLED
        assert student.net.head is not None
        motion_scores, order_scores = student.net.head(embedding), student.order(embedding)
        return {
            "motion": F.cross_entropy(motion_scores[whole], motions[whole], label_smoothing=0.05),
            "order": F.cross_entropy(order_scores[:, :4], order),
            "slowing": F.smooth_l1_loss(order_scores[whole, 4], slowing[whole] / 2),
            "named": (motion_scores.argmax(1) == motions)[whole].float().mean(),
            "ordered": (order_scores[:, :4].argmax(1) == order).float().mean(),
        }


def pair_losses(embedding: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Return the InfoNCE loss of embeddings (2 * pairs, C), second views behind the first, and the share of clips
    whose nearest embedding is their other view."""
    unit = F.normalize(embedding, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarities = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    other = torch.arange(len(unit), device=unit.device).roll(pairs)
    return F.cross_entropy(similarities, other), (similarities.argmax(1) == other).float().mean()
