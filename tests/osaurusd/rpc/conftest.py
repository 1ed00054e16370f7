from tests.osaurusd.pool.fixtures import clock, gate, model, processes

__all__ = ["clock", "gate", "model", "processes"]
