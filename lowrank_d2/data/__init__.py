"""Datasets, their check before training, and the mapper from catalog records to model inputs."""
