"""What the paper ran: one file a table."""

EXPERIMENTS: dict[str, str] = {
    "table1": "experiments.table1",
    "table2": "experiments.table2",
    "learning_rates": "experiments.learning_rates",
}
