"""Room for a data set's pixels, which are put in one after the other and may lie in memory or in a file."""

from collections.abc import Callable

import numpy as np


class Canvas:
    """Images of one size, filled from the front: (count, C, H, W) uint8.

    C is 1 as long as all images are grey, and becomes 3 with the first one in colour.

    Args:
        allocate: shape -> a uint8 array of that shape, whatever is in it. It is called once, or twice if grey images
            come before the first one in colour.
    """

    def __init__(self, allocate: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        self._allocate = allocate
        self._capacity = 0
        self._array: np.ndarray | None = None
        self.count = 0

    def expect(self, capacity: int) -> None:
        """Say how many images there will be at most, before the first one."""
        self._capacity = capacity

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images so far."""
        return None if self._array is None else self._array.shape[2:]

    @property
    def pixels(self) -> np.ndarray:
        """(N, C, H, W): what has been put in; N >= 1."""
        return self._array[: self.count]

    def add(self, image: np.ndarray) -> None:
        """Put in one image, (H, W) or (H, W, 3)."""
        self.extend(image[None, None] if image.ndim == 2 else image.transpose(2, 0, 1)[None])

    def extend(self, images: np.ndarray) -> None:
        """Put in some images, (n, C, H, W)."""
        if self._array is None:
            self._array = self._allocate((self._capacity, *images.shape[1:]))
        elif self._array.shape[1] < images.shape[1]:
            grey, self._array = self._array, self._allocate((self._capacity, *images.shape[1:]))
            self._array[: self.count] = grey[: self.count]
        self._array[self.count : self.count + len(images)] = images
        self.count += len(images)
