"""From the run store to tables, statistics and verdicts."""
