"""Prints what the rows of ``benchmarks.gradients.quality`` say."""

from collections.abc import Sequence

from benchmarks.tables import print_aligned
from sb3_hybrid_grpo.compare.csv_files import Row

TABLE = {
    "estimator": "name",
    "N": "n_samples",
    "K": "branch_horizon",
    "λ branch": "branch_lambda",
    "λ GAE": "gae_lambda",
    "sampling": "action_sampling",
    "cosine": "cosine",
    "±": "cosine_se",
    "limit": "limit_cosine",
    "rel. var.": "relative_variance",
    "sim. steps": "simulator_steps",
    "s": "seconds",
    "1x sim.": "cosine_at_1x_simulator_steps",
    "8x sim.": "cosine_at_8x_simulator_steps",
    "8x s": "cosine_at_8x_seconds",
}

CRITERIA = {
    "per committed step": "cosine",
    "at equal simulator steps": "cosine_at_8x_simulator_steps",
    "at equal time": "cosine_at_8x_seconds",
}


def print_best(rows: Sequence[Row], top: int) -> None:
    """
    Print the rows of PPO and the best others by each of ``CRITERIA``.

    :param rows: rows of a policy
    :param top: number of rows by each of them
    """
    policy = ", ".join(f"{name} {rows[0][name]}" for name in ("environment", "stage", "seed"))
    reference = {name: rounded(rows[0][f"reference_{name}"]) for name in ("horizon", "split_half", "ceiling")}
    print(policy, *(f"{name} of the reference {value}" for name, value in reference.items()), sep=", ")
    print_rows("PPO", [row for row in rows if row["name"] == "gae"])
    for title, column in CRITERIA.items():
        others = sorted((row for row in rows if row["name"] != "gae"), key=lambda row: -float(row[column]))
        print_rows(f"Best {title}", others[:top])


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """
    Print rows.

    :param title: what they are
    :param rows: the rows
    """
    print(f"{title}:")
    print_aligned([list(TABLE), *([rounded(row[column]) for column in TABLE.values()] for row in rows)])


def rounded(cell: str) -> str:
    """
    Shorten numbers.

    :param cell: a cell of the CSV file
    :return: three significant digits if it is a decimal number, else the same
    """
    try:
        return f"{float(cell):.3g}" if "." in cell or "e" in cell else cell
    except ValueError:
        return cell
