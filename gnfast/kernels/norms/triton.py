"""Derivatives of norms in Triton. Imported when it is chosen, as Triton may be missing."""

from gnfast.kernels.norms.triton_channels import channels
from gnfast.kernels.norms.triton_rows import MAX_ROW, project_rows, rows

__all__ = ["MAX_ROW", "channels", "project_rows", "rows"]
