"""The papers' figures: what `gnfast analyze` measures of a critic or of runs, and draws."""
