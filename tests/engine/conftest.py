import pytest
import torch


@pytest.fixture
def x():
    """A batch of images."""
    return torch.randn(4, 3, 5, 7, dtype=torch.float64)
