"""Helpers shared by all sub-packages: processes, logging, files, events, drawing."""
