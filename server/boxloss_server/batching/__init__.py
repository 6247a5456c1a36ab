"""Batching: what waits, when a batch closes, admission and deadlines. Knows asyncio, no gRPC and no torch."""

from boxloss_server.batching.admission import Admission, Outcome
from boxloss_server.batching.batcher import Batcher
from boxloss_server.batching.capacity import Capacity
from boxloss_server.batching.observer import Observer
from boxloss_server.batching.quotas import Quotas
from boxloss_server.batching.unread import GiveBack, UntilWritten

__all__ = ["Admission", "Batcher", "Capacity", "GiveBack", "Observer", "Outcome", "Quotas", "UntilWritten"]
