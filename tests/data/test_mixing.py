"""Images of two pictures each, and their labels."""

import torch

from apq_optuna.data import mixed_images, mixed_labels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int = 400) -> torch.Tensor:
    """Images of one value each: their own number."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(count, 1, 16, 16).contiguous()


def test_none_are_mixed_where_none_are_to_be() -> None:
    images = numbered()
    same, own = mixed_images(images, 0.0, generator())
    assert torch.equal(same, images)
    assert torch.equal(own, torch.ones(400))


def test_half_are_blended_and_half_are_cut() -> None:
    images = numbered()
    mixed, own = mixed_images(images, 0.8, generator())
    values = mixed.flatten(1)
    plain = (own == 1) & (values == images.flatten(1)).all(1)
    one_value = (values == values[:, :1]).all(1)
    blended, cut = one_value & ~plain, ~one_value
    for found, share in ((plain, 0.2), (blended, 0.4), (cut, 0.4)):
        assert abs(found.float().mean().item() - share) < 0.07
    other = images.roll(1, 0).flatten(1)
    either = (values[cut] == images.flatten(1)[cut]) | (values[cut] == other[cut])
    assert either.all()  # a cut image has whole pixels of the two, and no other
    assert 0.4 < own[blended].mean() < 0.6


def test_what_is_an_images_own_is_what_is_left_of_it() -> None:
    ones = torch.ones(300, 3, 32, 32)
    ones[1::2] = 0  # every other image is black, so that what is bright is one's own
    mixed, own = mixed_images(ones, 1.0, generator(2))
    bright = mixed.mean((1, 2, 3))
    torch.testing.assert_close(bright[::2], own[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(bright[1::2], 1 - own[1::2], atol=1e-5, rtol=0)


def test_labels_say_how_much_there_is_of_each() -> None:
    labels = torch.tensor([2, 0, 1])
    told = mixed_labels(labels, torch.tensor([1.0, 0.25, 0.5]), 3)
    torch.testing.assert_close(told, torch.tensor([[0, 0, 1.0], [0.25, 0, 0.75], [0.5, 0.5, 0]]))


def test_the_same_generator_mixes_alike() -> None:
    images = torch.rand(8, 3, 8, 8)
    first, second = (mixed_images(images, 0.5, generator(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
