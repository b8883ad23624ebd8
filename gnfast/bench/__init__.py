"""Measuring what a normalised critic costs, on the machine at hand: `gnfast bench`, and what benchmarks/ is made of.

    networks ─ steps ─► ways, baselines ─► cases ─ run (gate, clock, count) ─► rows ─► table, plots
    plan ─► cost ─ ceilings ─► the floor that every row is compared with

Nothing is reported faster than something else before both were found to compute the same.
"""
