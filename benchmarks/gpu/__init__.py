"""What `make gpu` runs: everything that there is to learn about gnfast on the present GPU, in stages with time limits.

    __main__ (stages) ─ crew (processes) ─► work ─► sections: smoke · headline · compiled · tests · rest · training
         └─ record (results.json, failures.txt, log.txt) ─ summary (the table) · bounds

A section yields rows; each is in results.json as soon as it is measured. A section that raises, hangs or dies costs
itself alone.
"""
