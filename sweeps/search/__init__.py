"""Searches of merge schedules and learning rates."""
