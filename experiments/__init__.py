"""What the paper ran: one file a table."""

EXPERIMENTS: dict[str, str] = {
    "table1": "experiments.table1",
    "table2": "experiments.table2",
    "table5": "experiments.table5",
    "learning_rates": "experiments.learning_rates",
}
# Experiments that train nothing: beside `build` their module has `count`, which gives the whole table.
COUNTED = ("table5",)
