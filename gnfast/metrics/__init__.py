"""How far generated images are from real ones: Fréchet distances in the features of a named extractor."""

from gnfast.metrics.evaluate import DistanceResult, evaluate, reference_statistics
from gnfast.metrics.extractors import FeatureExtractor, load_extractor, registered_extractors
from gnfast.metrics.frechet import FeatureStatistics, frechet_distance

__all__ = [
    "DistanceResult",
    "FeatureExtractor",
    "FeatureStatistics",
    "evaluate",
    "frechet_distance",
    "load_extractor",
    "reference_statistics",
    "registered_extractors",
]
