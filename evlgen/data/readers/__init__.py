"""Readers of real data sets, one file a family."""
