"""Augmentations against an image-by-image twin, and the distribution that they are drawn from."""

import pytest
import torch
import torch.nn.functional as F

from gnfast.data import DataError, Shifts, apply_shifts, draw_shifts, flip_and_translate

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def moved(image, mirrored, down, right, fill):
    """One (C, H, W) image by padding and cutting."""
    _, height, width = image.shape
    if mirrored:
        image = image.flip(-1)
    padded = F.pad(image, (width, width, height, height), value=fill)
    return padded[:, height - down : 2 * height - down, width - right : 2 * width - right]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (9, 1, 5, 11), (1, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_agrees_with_one_image_after_another(device, shape, layout):
    images = torch.randn(shape).contiguous(memory_format=layout)
    shifts = draw_shifts(shape[0], *shape[2:], torch.Generator().manual_seed(1), translate=0.9)
    wanted = torch.stack([moved(*one, fill=-1.0) for one in zip(images, *shifts, strict=True)])
    kept = images.clone()
    assert torch.equal(apply_shifts(images.to(device), shifts).cpu(), wanted)
    assert torch.equal(images, kept)


def test_directions_and_fill():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    down = Shifts(torch.tensor([False]), torch.tensor([1]), torch.tensor([0]))
    assert apply_shifts(image, down).tolist() == [[[[-1, -1, -1], [0, 1, 2]]]]
    mirrored_then_right = Shifts(torch.tensor([True]), torch.tensor([0]), torch.tensor([1]))
    assert apply_shifts(image, mirrored_then_right, fill=9).tolist() == [[[[9, 2, 1], [9, 5, 4]]]]
    far = Shifts(torch.tensor([False]), torch.tensor([-2]), torch.tensor([0]))
    assert (apply_shifts(image, far, fill=0) == 0).all()


def test_distribution_is_that_of_rounded_uniform_numbers():
    mirrored, down, right = draw_shifts(200_000, 32, 48, torch.Generator().manual_seed(0))
    assert abs(mirrored.double().mean() - 0.5) < 0.005
    for shift, largest, limit in ((down, 6, 6.4), (right, 10, 9.6)):
        values, counts = shift.unique(return_counts=True)
        assert values.tolist() == list(range(-largest, largest + 1))
        shares = counts / len(shift)
        inner, outer = 1 / (2 * limit), (limit - (largest - 0.5)) / (2 * limit)
        wanted = torch.full_like(shares, inner)
        wanted[[0, -1]] = outer
        assert torch.allclose(shares, wanted, atol=0.004)
    correlation = torch.corrcoef(torch.stack([mirrored, down, right]).double())
    assert (correlation - torch.eye(3)).abs().max() < 0.01


def test_processes_share_the_draws():
    images = torch.randn(6, 3, 8, 8)
    generators = [torch.Generator().manual_seed(4) for _ in range(4)]
    whole = flip_and_translate(images, generators[0])
    assert not torch.equal(whole, images)
    parts = [flip_and_translate(part, generators[1 + i], rank=i, world=3) for i, part in enumerate(images.split(2))]
    assert torch.equal(torch.cat(parts), whole)
    assert len({generator.get_state().numpy().tobytes() for generator in generators}) == 1


def test_no_flip_no_translation_is_the_identity():
    images = torch.randn(5, 3, 8, 8)
    shifts = draw_shifts(5, 8, 8, torch.Generator(), flip=0, translate=0)
    assert torch.equal(apply_shifts(images, shifts), images)


def test_refuses():
    generator = torch.Generator()
    with pytest.raises(DataError, match=r"translate: got 1\.5, wanted a number from 0 to 1"):
        draw_shifts(2, 8, 8, generator, translate=1.5)
    with pytest.raises(DataError, match="flip: got -1, wanted a number from 0 to 1"):
        draw_shifts(2, 8, 8, generator, flip=-1)
    with pytest.raises(DataError, match=r"images: got \(3, 3, 8, 8\), wanted \(2, C, H, W\), as many as shifts"):
        apply_shifts(torch.zeros(3, 3, 8, 8), draw_shifts(2, 8, 8, generator))
