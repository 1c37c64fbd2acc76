"""The longest test starts first, so that no worker ends alone with it."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name != "test_on_eight_devices")
