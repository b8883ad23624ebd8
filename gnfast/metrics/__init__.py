"""How far generated images are from real ones: FID, IS and KID, in the features of any extractor; and how alike."""

from gnfast.metrics.evaluate import KEEP, dataset_statistics, evaluate, generated_statistics, reference_statistics
from gnfast.metrics.extractors import load_extractor, registered_extractors
from gnfast.metrics.features import FeatureExtractor
from gnfast.metrics.frechet import FeatureStatistics, frechet_distance
from gnfast.metrics.inception import Inception, build_inception
from gnfast.metrics.inception_score import InceptionScore
from gnfast.metrics.kid import kernel_distance
from gnfast.metrics.protocols import PROTOCOLS, Protocol, find_protocol
from gnfast.metrics.scores import Scores, compare, require_comparable
from gnfast.metrics.similarity import PAIRS, intra_class_ms_ssim, ms_ssim
from gnfast.metrics.statistics import ImageStatistics, origin

__all__ = [
    "KEEP",
    "PAIRS",
    "PROTOCOLS",
    "FeatureExtractor",
    "FeatureStatistics",
    "ImageStatistics",
    "Inception",
    "InceptionScore",
    "Protocol",
    "Scores",
    "build_inception",
    "compare",
    "dataset_statistics",
    "evaluate",
    "find_protocol",
    "frechet_distance",
    "generated_statistics",
    "intra_class_ms_ssim",
    "kernel_distance",
    "load_extractor",
    "ms_ssim",
    "origin",
    "reference_statistics",
    "registered_extractors",
    "require_comparable",
]
