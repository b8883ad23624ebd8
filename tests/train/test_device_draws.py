"""Draws on the device have the form of those on the CPU, and depend on seed and step alone."""

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree

from gnfast import InputError
from gnfast.data import Batches, DataError, ImageDataset, StepOrder, draw_shifts
from gnfast.data.augment import shifts_from
from gnfast.train.device_draws import DeviceDraws
from gnfast.train.parallel import ALONE, Group
from gnfast.train.state import State
from gnfast.train.step import algorithm_1
from tests.tiny_runs import equal, tiny

SIZES = {"batch_d": 12, "batch_g": 24, "n_dis": 3}
SETTINGS = {
    "plain": {},
    "all": {"penalty": "r1", "consistency": 1.0, "flip": True},
    "classes": {"classes": 10, "model": "biggan", "resolution": 32, "channels": 3, "z_dim": 8, "flip": False},
    "contiguous": {"memory_format": "contiguous", "accumulate": 2},
    "float64": {"precision": "float64", "penalty": "1-gp", "n_dis": 1},
}


def settings(folder, name="plain", **changes):
    return tiny(folder, **{**SIZES, **SETTINGS[name], **changes})


def dataset(config, count=50):
    """Images that differ, their labels being the last digits of their numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = count, config.channels, config.resolution, config.resolution
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return ImageDataset("made", images, torch.arange(count) % 10, tuple("0123456789"))


def draws_of(config, data=None, group=ALONE, dtype=torch.float32, **how):
    batches = Batches(data or dataset(config), config.batch_d, rank=group.rank, world=group.world, **how)
    return DeviceDraws(config, batches, dtype, group)


def at(step):
    return torch.tensor([step])


@pytest.mark.parametrize("name", SETTINGS)
def test_form_is_that_of_draws_on_the_cpu(name, tmp_path):
    config = settings(tmp_path, name)
    state = State(config, dataset(config), torch.device("cpu"))
    on_cpu = list(state.draws())
    found = DeviceDraws(config, state.batches, state.dtype)(at(3))
    assert pytree.tree_structure(found) == pytree.tree_structure(on_cpu)
    for actual, wanted in zip(pytree.tree_leaves(found), pytree.tree_leaves(on_cpu), strict=True):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            wanted = wanted.to(state.dtype) if wanted.is_floating_point() else wanted
            assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
    assert all(draw.real.is_contiguous(memory_format=state.format) for draw in found[:-1])
    # And a step takes them.
    assert algorithm_1(state, found).isfinite().all()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_of_processes_make_the_whole(world, tmp_path):
    config = settings(tmp_path, "classes", **SETTINGS["all"])
    whole = draws_of(config)(at(5))
    shares = [draws_of(config, group=Group(rank, world))(at(5)) for rank in range(world)]
    together = pytree.tree_map(lambda *parts: None if parts[0] is None else torch.cat(parts), *shares)
    assert equal(together, whole)


def test_a_step_depends_on_its_number_alone(tmp_path):
    config = settings(tmp_path, "all")
    draws, step, found = draws_of(config), at(0), []
    for _ in range(6):
        found.append(draws(step))
        # As a graph does: the tensor stays, its value changes.
        step += 1
    assert equal(draws_of(config)(at(4)), found[4]) and equal(draws(at(4)), found[4])
    reals = torch.stack([draw.real for drawn in found for draw in drawn[:-1]]).flatten(1)
    latents = torch.cat(
        [part.flatten() for drawn in found for part in (*(d.latents.z for d in drawn[:-1]), drawn[-1].z)]
    )
    assert len(reals.unique(dim=0)) == len(reals) and len(latents.unique()) > 0.999 * len(latents)
    other = draws_of(dataclasses.replace(config, seed=1))(at(4))
    assert not any(
        torch.equal(a, b)
        for a, b in zip(pytree.tree_leaves(other), pytree.tree_leaves(found[4]), strict=True)
        if a is not None
    )


def test_updates_go_through_the_images_epoch_after_epoch(tmp_path):
    config = settings(tmp_path, "classes", batch_d=8)
    data = dataset(config)
    numbers = {image.numpy().tobytes(): number for number, image in enumerate(data.images)}
    draws, order = draws_of(config, data), []
    for step in range(25):
        for draw in draws(at(step))[:-1]:
            images = ((draw.real + 1) * 127.5).round().to(torch.uint8).contiguous()
            order.append(torch.tensor([numbers[image.numpy().tobytes()] for image in images]))
            assert torch.equal(draw.labels, order[-1] % 10)
    epochs = torch.cat(order).view(12, 50)
    assert torch.equal(epochs.sort(1).values, torch.arange(50).expand(12, -1)) and len(epochs.unique(dim=0)) == 12


def test_precision_does_not_change_the_draw(tmp_path):
    config = settings(tmp_path, "all")
    wide, narrow = draws_of(config, dtype=torch.float64)(at(2)), draws_of(config)(at(2))
    assert equal(
        pytree.tree_map_only(torch.Tensor, torch.Tensor.double, narrow),
        pytree.tree_map_only(torch.Tensor, torch.Tensor.double, wide),
    )
    assert wide[0].place.dtype == wide[0].real.dtype == wide[-1].z.dtype == torch.float64


def test_shifts_are_distributed_as_on_the_cpu(tmp_path):
    config = settings(tmp_path, "all", resolution=32, n_dis=5, batch_d=12_000, width=0.05)
    draws = [draw.shifts for draw in draws_of(config, dataset(config, 3))(at(1))[:-1]]
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    drawn = draw_shifts(60_000, 32, 32, generators[0])
    made = shifts_from(torch.rand(3, 60_000, generator=generators[1]), torch.tensor([[32], [32]]))
    assert equal(tuple(drawn), tuple(made))
    for actual, wanted in zip(zip(*draws, strict=True), drawn, strict=True):
        actual = torch.cat(actual)
        (values, counts), (those, shares) = (t.long().unique(return_counts=True) for t in (actual, wanted))
        assert torch.equal(values, those)
        # Both are counts of 60,000 draws.
        assert (((counts - shares) ** 2 / (counts + shares)).sum() < len(values) + 4 * (2 * len(values)) ** 0.5).item()


@pytest.mark.parametrize("group", [ALONE, Group(1, 3)], ids=str)
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("count", [23, 5000])
def test_images_that_are_not_resident_are_given(count, prefetch, group, tmp_path):
    """They and their flips are those that are drawn where the data set is resident; so they are after a start anew."""
    config = settings(tmp_path, "classes", **SETTINGS["all"])
    data = dataset(config, count)
    how = {"resident": False, "prefetch": prefetch, "seed": 3, "flip": True}
    there = draws_of(config, data, group)
    for start in (0, 62):
        here = draws_of(config, data, group, **how, order=StepOrder(count, config.seed, config.n_dis, config.batch_d))
        here.batches.load_state_dict({"number": start * config.n_dis})
        for step in (start, start + 1, start + 2):
            given = [next(here.batches) for _ in range(3)]
            found = here(at(step), given)
            assert all(draw.real is images for draw, (images, _) in zip(found, given, strict=False))
            assert equal(found, there(at(step)))
        assert here.batches.state_dict() == {"number": 3 * (start + 3)}


def test_wrong_numbers_of_given_images(tmp_path):
    config = settings(tmp_path)
    draws = draws_of(config, resident=False, prefetch=0)
    given = [next(draws.batches) for _ in range(3)]
    for call, number in ((draws, 2), (draws, 0), (draws_of(config), 3)):
        with pytest.raises(InputError, match=f"given: got {number} batches, wanted {3 if call is draws else 0}"):
            call(at(1), given[:number])


def test_wrong_orders(tmp_path):
    config = settings(tmp_path)
    for size, batch in ((49, 12), (50, 11)):
        with pytest.raises(
            DataError, match=f"order: got one of {size} images in batches of {batch}, wanted 50 in batches"
        ):
            draws_of(config, order=StepOrder(size, 0, 3, batch))
    with pytest.raises(DataError, match=r"seed: got \d+, wanted at most 2\*\*63 - 1"):
        StepOrder(50, 2**63, 3, 12)
    batches = draws_of(config, order=StepOrder(50, 2**63 - 1, 3, 12)).batches
    for state in ({}, {"number": -1}, {"number": 1.0}):
        with pytest.raises(DataError, match="number"):
            batches.load_state_dict(state)
