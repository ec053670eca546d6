"""Readers of the data sets, one file a family."""
