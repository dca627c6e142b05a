"""Choosing the exit margin of an ensemble."""

from __future__ import annotations

import pytest
import torch

from mnist_mamba.early_exit import changed_predictions, members_asked, safe_margin
from mnist_mamba.model import MambaEnsemble
from mnist_mamba.training.evaluation import answers, member_logits, predict
from tests.models import make_images, make_model


def ensemble() -> MambaEnsemble:
    model = make_model("ensemble")
    assert isinstance(model, MambaEnsemble)
    return model


def test_a_margin_is_safe_if_no_mean_on_the_way_has_another_class() -> None:
    logits = torch.tensor(
        [
            [[2.0, 0.0], [0.0, 3.0], [9.0, 0.0]],
            [[2.0, 0.0], [8.0, 0.0], [1.0, 0.0]],  # image 1: margin 3 of class 1, then 2.5 of 0
            [[2.0, 0.0], [0.0, 6.0], [1.0, 0.0]],  # and 1/3 of class 1 in the end
        ]
    )
    assert safe_margin(logits) == 2.5
    assert safe_margin(logits[:2]) == 3.0
    assert safe_margin(logits[:1]) == 0.0
    assert safe_margin(logits[:, :1]) == 0.0


def test_from_the_safe_margin_on_no_class_changes() -> None:
    model = ensemble()
    images = make_images(model.config, 400)
    each = member_logits(model, images)
    whole = each.mean(dim=0)
    torch.testing.assert_close(whole, predict(model, images))
    safe = safe_margin(each)
    assert safe > 0
    for factor in (1 + 1e-5, 1.1, 1.3, 2):
        model.exit_margin = factor * safe
        assert changed_predictions(answers(model, images)[0], whole) == 0
    model.exit_margin = safe / 2
    logits, asked = answers(model, images)
    assert changed_predictions(logits, whole) > 0
    assert 1 < asked.double().mean() < 3


@pytest.mark.parametrize("ahead", [1, 5])
def test_an_image_at_the_safe_margin_asks_the_next_member(ahead: int) -> None:
    """The rounded means of three members differ by less than a third of their sums' difference."""
    each = torch.tensor([[[3.0, 3.0]], [[3.0, 3.0]], [[3.0 + ahead, 3.0]], [[0.0, 9.0]]])
    model = ensemble()
    model.exit_margin = safe_margin(each)
    assert 0 <= model.exit_margin - ahead / 3 < 2**-23
    model.members = torch.nn.ModuleList(Says(logits) for logits in each)
    logits, asked = model.eval().answers(torch.arange(1))
    assert asked.item() == 4
    assert changed_predictions(logits, each.mean(dim=0)) == 0


class Says(torch.nn.Module):
    """A member that gives image i the i-th logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images]


def test_shares_are_of_all_images() -> None:
    found = members_asked(torch.tensor([1, 1, 1, 3]), 4)
    assert found == {"mean": 1.5, "share": {"1": 0.75, "2": 0.0, "3": 0.25, "4": 0.0}}


@pytest.mark.parametrize("training", [True, False])
def test_answers_are_those_of_evaluation(training: bool) -> None:
    model = ensemble().train(training)
    images = make_images(model.config, 10)
    model.exit_margin = 0.3
    logits, asked = answers(model, images, batch_size=4)
    assert model.training == training
    model.eval()
    expected = model.answers(images / 255)
    torch.testing.assert_close(logits, expected[0])
    assert asked.tolist() == expected[1].tolist()
