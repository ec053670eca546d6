"""Decoding, scores and measurements of trained runs."""
