"""What the paper ran: one file a table."""

EXPERIMENTS: dict[str, str] = {
    "table1": "experiments.table1",
    "table2": "experiments.table2",
    "table5": "experiments.table5",
    "budgets": "experiments.budgets",
    "merge_schedules": "experiments.merge_schedules",
    "data_fractions": "experiments.data_fractions",
    "two_stage": "experiments.two_stage",
    "collapse": "experiments.collapse",
    "encoders": "experiments.encoders",
    "baselines": "experiments.baselines",
    "initialisation": "experiments.initialisation",
    "soft_tokens": "experiments.soft_tokens",
    "learning_rates": "experiments.learning_rates",
    "bridge": "experiments.bridge",
}
# Experiments that train nothing: beside `build` their module has `count`, which gives the whole table.
COUNTED = ("table5",)
# The paper in order, and what its claims need beside: `sweeps/run.py all`. With those that claims rest on.
PAPER = tuple(name for name in EXPERIMENTS if name not in ("learning_rates", "bridge"))
CLAIMED = ("table1", "table2", "budgets", "encoders")
# The scale that an experiment is for, where it is another than `mini`.
DEFAULT_SCALE = {"bridge": "bridge"}
