"""The inputs of a batch follow what is done to its cache."""

from __future__ import annotations

import torch
from blockswarm.client.model.batch.history import History


def test_columns_are_joined_cropped_and_selected_like_those_of_the_cache() -> None:
    history = History()
    assert history.joined().shape == (0, 0)
    history.append(torch.tensor([[1, 2], [3, 4]]))
    history.append(torch.tensor([[5], [6]]))
    assert history.joined().tolist() == [[1, 2, 5], [3, 4, 6]]
    history.select(torch.tensor([1, 1]))
    history.crop(2)
    history.append(torch.tensor([[7], [8]]))
    assert history.joined().tolist() == [[3, 4, 7], [3, 4, 8]]
    history.crop(0)
    assert history.joined().shape == (0, 0)


def test_what_is_no_id_has_more_dimensions() -> None:
    history = History()
    history.append(torch.zeros(2, 3, 4))
    history.append(torch.ones(2, 1, 4))
    history.select(torch.tensor([0]))
    assert history.joined().shape == (1, 4, 4)


def test_one_text_may_take_the_place_of_another() -> None:
    history = History()
    history.append(torch.tensor([[1]]))
    history.replace(torch.tensor([[2, 3]]))
    assert history.joined().tolist() == [[2, 3]]
