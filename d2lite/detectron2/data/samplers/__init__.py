"""In which order a dataset is walked, on every process."""
from .distributed_sampler import (
    InferenceSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler,
)
from .grouped_batch_sampler import GroupedBatchSampler
