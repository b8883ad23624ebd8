"""GN-GAN, GraN-GAN and PGN-GAN: each cell of their files can be trained, each setting says where it comes from."""

import dataclasses

import pytest
import torch

from gnfast.config.chosen import chosen, of_its_data
from gnfast.config.config import Config, as_json, from_json
from gnfast.config.papers import items
from gnfast.config.presets import PRESETS
from gnfast.losses import LOSSES, domain_scaled

ITEMS = [item for item in items().values() if item.paper in ("GN-GAN", "GraN-GAN", "PGN-GAN")]
SETTINGS = {field.name for field in dataclasses.fields(Config)}
SOURCES = {"paper (Bhaskara et al., WACV 2022)": "paper", "code (kwotsin/mimicry), which the paper uses": "mimicry"}


def changed(name, base):
    one, other = vars(PRESETS[name].config), vars(PRESETS[base].config)
    return {setting for setting in one if one[setting] != other[setting]}


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_every_cell_of_the_papers_can_be_trained(item):
    for cell in item.cells:
        if cell.preset:
            from_json(as_json(PRESETS[cell.preset].config) | item.base | cell.options)
    places = [(cell.row, cell.column) for cell in item.cells]
    assert len({*places}) == len(places)


@pytest.mark.parametrize(("paper", "tables", "figures"), [("gngan", 4, 5), ("grangan", 3, 4), ("pgngan", 6, 8)])
def test_every_table_and_figure_has_a_file(paper, tables, figures):
    wanted = {f"Table {n + 1}" for n in range(tables)} | {f"Fig. {n + 1}" for n in range(figures)}
    assert {one.item for name, one in items().items() if name.startswith(f"{paper}-")} - {"Section 5.1"} == wanted


def test_sources_are_of_settings():
    for name, preset in PRESETS.items():
        assert {*preset.published, *preset.elsewhere} <= SETTINGS, name


def test_reported_scores_come_from_the_tables():
    # The caption of GraN-GAN's Fig. 1 rounds it to 10.8.
    assert PRESETS["grand-bedroom-128"].reported == "FID 10.795, KID × 1000 7.3"
    assert PRESETS["gngan-cifar10-biggan-cr"].reported == "IS 9.35±.14, FID (train) 4.86±.07"
    assert not PRESETS["gngan-cifar10-layered"].reported


@pytest.mark.parametrize("pair", ["cifar10-cnn", "cifar10-resnet", "stl10-cnn", "stl10-resnet", "cifar10-biggan"])
def test_spectral_norm_in_place_of_gn_changes_little_else(pair):
    assert changed(f"gngan-{pair}-sn", f"gngan-{pair}") <= {"method", "spectral_norm", "loss", "lr_d"}
    assert changed(f"gngan-{pair}-sn-cr", f"gngan-{pair}-sn") == {"consistency"}
    config = PRESETS[f"gngan-{pair}-sn"].config
    assert (config.method, config.spectral_norm, config.loss, config.lr_d) == ("none", True, "hinge", config.lr_g)
    assert PRESETS[f"gngan-{pair}-sn"].source_of("loss") == "gnfast"
    # The paper raises it for GN on two pairs, and says from what; elsewhere the code has it.
    raised = "paper" if pair.endswith(("resnet", "biggan")) else "official code"
    assert raised in PRESETS[f"gngan-{pair}-sn"].source_of("lr_d")


def test_first_weights_of_sngan_are_the_papers_where_it_has_them():
    assert PRESETS["sngan-cifar10-orthonormal"].source_of("init_d").startswith("paper")
    assert PRESETS["sngan-cifar10-cnn"].source_of("init_d") == "gnfast"
    assert "official code" in PRESETS["gngan-celebahq-256-sn"].source_of("lr_d")


def test_grangan_measures_against_as_many_real_images_as_its_paper():
    for name in ("granc-stl10", "wgan-gp-k-bedroom-128", "nsgan-celeba-128"):
        assert PRESETS[name].config.n_real == PRESETS[name].config.n_fake == 50_000
        assert PRESETS[name].source_of("n_real").startswith("paper")


@pytest.mark.parametrize("suffix", ["cnn", "cnn-cr", "resnet", "resnet-cr"])
def test_pgn_as_its_paper_says(suffix):
    for data, steps in (("cifar10", 200_000), ("stl10", 500_000)):
        name = f"pgngan-{data}-{suffix}-paper"
        c = PRESETS[name].config
        assert (c.method, c.loss, c.init, c.steps) == ("pgn-table", "hinge", "kaiming-normal", steps)
        assert c.consistency == (5.0 if suffix.endswith("cr") else 0.0)
        assert PRESETS[name].source_of("init") == PRESETS[name].source_of("loss") == "paper (Xia, 2023)"
        assert "official code" in PRESETS[name].source_of("z_dim")
    assert "official code" in PRESETS["pgngan-celebahq-256-paper"].source_of("loss")


@pytest.mark.parametrize(
    ("name", "by_paper", "by_mimicry", "ours"),
    [
        (
            "grand-cifar10",
            {"lr_d", "n_dis", "tau", "betas", "adam_eps"},
            {"flip", "z_dim", "lr_decay"},
            {"eps", "ema_start"},
        ),
        ("grand-stl10", {"steps", "betas"}, {"lr_d", "lr_g", "n_dis", "ema_decay", "flip"}, {"tau", "eps"}),
        ("nsgan-gp-k-celeba-128", {"penalty"}, {"penalty_weight", "n_dis"}, {"k_gp"}),
        ("wgan-gp-cifar10-c", {"lr_d", "betas", "n_dis"}, {"penalty_weight"}, set()),
    ],
)
def test_where_settings_of_grangan_come_from(name, by_paper, by_mimicry, ours):
    for settings, source in ((by_paper, "paper"), (by_mimicry, "mimicry"), (ours, "gnfast")):
        for setting in settings:
            found = PRESETS[name].source_of(setting)
            assert SOURCES.get(found, found) == source, setting


def test_learning_rates_at_128_pixels_decay_as_in_mimicry():
    decays = {name: PRESETS[f"{name}-128"].config.lr_decay for name in ("grand-bedroom", "grand-celeba")}
    assert decays == {"grand-bedroom": "linear", "grand-celeba": "none"}


@pytest.mark.parametrize("name", ["nsgan-sn", "sngan-mimicry"])
def test_tuned_constant_is_a_factor_on_the_critic(name):
    config, factor = PRESETS[f"{name}-k-cifar10"].config, 0.83
    torch.manual_seed(0)
    x, start = torch.randn(64, 8, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    ends = []
    for loss, scale, eps in (
        (LOSSES[config.loss], factor, PRESETS[f"{name}-cifar10"].config.adam_eps),
        (domain_scaled(LOSSES[config.loss], config.alpha), 1.0, config.adam_eps),
    ):
        weight = start.clone().requires_grad_()
        # Small gradients, for which ε counts.
        adam = torch.optim.Adam([weight], lr=1e-3, betas=(0.0, 0.9), eps=eps)
        for _ in range(5):
            adam.zero_grad()
            f = x @ weight * scale
            (1e-8 * loss.critic(f[:32], f[32:])).backward()
            adam.step()
        ends.append(weight.detach())
    assert (ends[0] - start).abs().max() > 1e-4
    torch.testing.assert_close(*ends, rtol=1e-10, atol=0)


def test_other_images_are_taken_whole():
    stl = PRESETS["gngan-stl10-cnn"].config
    for config, given, wanted in (
        (stl, {}, "unlabeled"),
        (dataclasses.replace(stl, data="pictures"), {}, "train"),
        (dataclasses.replace(stl, data="pictures", split="unlabeled"), {"split"}, "unlabeled"),
    ):
        assert of_its_data(config, stl, given).split == wanted
    celebahq = PRESETS["gngan-celebahq-128"].config
    assert celebahq.eval_split == "test"
    assert chosen("gngan-celebahq-128", None, {"data": "pictures"}, False)[1].eval_split == ""
    assert chosen("gngan-celebahq-128", None, {}, True)[1].eval_split == ""
