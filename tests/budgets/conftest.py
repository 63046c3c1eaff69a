from tests.ledger.conftest import runtime_directory

__all__ = ["runtime_directory"]
