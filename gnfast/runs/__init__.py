"""Run folders: written, locked, compared, drawn, and started by the dozen. Nothing here trains."""
