"""Benchmarks: times as ratios within one process, since machines differ; memory in a process of its own."""
