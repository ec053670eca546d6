"""What everything stands on: files, checkpoints, processes, devices."""
