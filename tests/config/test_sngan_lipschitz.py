"""The files and presets of SN-GAN's and the Lipschitz paper's tables and figures, against each other."""

import dataclasses

import pytest

from gnfast.config.config import as_json, decisive, from_json
from gnfast.config.papers import items
from gnfast.config.presets import PRESETS
from gnfast.config.presets.sngan import SETTINGS

COUNTS = {"sngan": (8, 15), "lipschitz": (5, 5)}


@pytest.mark.parametrize("paper", COUNTS)
def test_every_table_and_figure_has_a_file(paper):
    tables, figures = COUNTS[paper]
    wanted = [f"Table {n + 1}" for n in range(tables)] + [f"Fig. {n + 1}" for n in range(figures)]
    assert [one.item for name, one in items().items() if name.startswith(f"{paper}-")] == wanted


@pytest.mark.parametrize("name", [name for name in items() if name.startswith(tuple(COUNTS))])
def test_every_cell_is_a_run_that_can_be_had(name):
    one = items()[name]
    for cell in one.cells:
        if cell.preset:
            # Raises where an option or its value is unknown.
            from_json(as_json(PRESETS[cell.preset].config) | one.base | cell.options)
    assert len({(cell.row, cell.column) for cell in one.cells}) == len(one.cells)


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
