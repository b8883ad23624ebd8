"""The files and presets of SN-GAN's and the Lipschitz paper's tables and figures, against each other."""

import dataclasses

from gnfast.config.config import decisive
from gnfast.config.papers import items
from gnfast.config.presets import PRESETS
from gnfast.config.presets.sngan import SETTINGS


def test_a_row_of_sngans_table_2_is_one_of_its_fig_1():
    presets, others = ([cell.preset for cell in items()[name].cells] for name in ("sngan-fig1", "sngan-fig2"))
    assert presets == others
    runs = [decisive(PRESETS[preset].config) for preset in presets]
    for cell in items()["sngan-table2"].cells:
        if cell.preset and "Eq.(17)" not in cell.row:
            assert decisive(PRESETS[cell.preset].config) in runs
    for cell in items()["sngan-fig1"].cells:
        config = PRESETS[cell.preset].config
        assert dataclasses.replace(config, **SETTINGS[cell.column]) == config


def test_an_extreme_of_k_sn_is_wassersteins_row_of_both_tables():
    wide = {cell.row: cell.printed["fid"] for cell in items()["lipschitz-table3"].cells if cell.column == "50"}
    for cell in items()["lipschitz-table5"].cells:
        assert cell.options["k_sn"] == 50
        if cell.row == "WGAN-SN":
            assert cell.printed["fid"] == wide[f"{cell.column} WGAN-SN"]
        else:
            assert cell.options["alpha"] == 1e-25
