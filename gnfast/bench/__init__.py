"""Measuring what a normalised critic costs, on the machine at hand: `gnfast bench`, and what benchmarks/ is made of.

    critics, critic_steps ─► baselines ─► cases ─► comparison (gate, clock, count) ─► rows ─► printed_rows, plots
    plan ─► cost, ceilings ─► the floor that every row is compared with
    count, gpu_ways ─► launches

Nothing is reported faster than something else before both were found to compute the same.
"""
