"""What the server's tests share: Flower's messages can be made only by someone."""

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(scope="session", autouse=True)
def sender() -> None:
    """Be the server of some run; Flower's `Message` reads the sender from here."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
