"""A program of the tests: a client that spends one round after another until its ledger refuses.

`python spending_client.py HOME BUDGET` waits for a line on its input, so that several begin together, and prints how
many rounds it got.
"""

import sys
from pathlib import Path

from astrofed.client.privacy.ledger import Ledger
from astrofed.client.privacy.mistakes import BudgetSpent
from astrofed.shared.privacy import accounting  # noqa: F401 - loaded before the start, not while others already spend
from astrofed.shared.privacy.events import Event, Expense

home, budget = Path(sys.argv[1]), float(sys.argv[2])
expense = Expense("trial", 1, "federated", "f" * 64, "planet", 200, 1.0, Event(1.0, 0.1, 20))
ledger = Ledger(home)
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
rounds = 0
try:
    while True:
        ledger.settle(ledger.reserve(expense, budget, 1e-5), expense, 20)
        rounds += 1
except BudgetSpent:
    sys.stdout.write(f"{rounds}\n")
