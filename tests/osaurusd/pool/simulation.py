"""A scheduler driven by hand: its effects are recorded, and the test sets the time."""

import functools
import itertools

from osaurusd.errors import WorkerCrashed
from osaurusd.pool.scheduler import Scheduler
from osaurusd.pool.state import ModelSpec, SchedulerConfig

A, B, C, D = "org/a", "org/b", "org/c", "org/d"
CRASH = WorkerCrashed("it crashed")

_TIMED_EVENTS = frozenset(
    [
        "tick",
        "configure",
        "set_keep_alive",
        "abandon",
        "release",
        "ready",
        "reserve",
        "exited",
        "pin",
        "unpin",
        "shut_down",
    ]
)


class RecordedEffects:
    """Records what the scheduler does, in order."""

    def __init__(self):
        self.calls = []
        self.reasons = []
        self.causes = []
        self.started = []
        self.limits = []

    def start(self, model):
        self.calls.append(("start", model.key))
        self.started.append(model)

    def stop(self, model, reason, cause):
        self.calls.append(("stop", model.key))
        self.reasons.append(reason)
        self.causes.append(cause)

    def update_limit(self, model):
        self.limits.append((model.key, model.limit_bytes))

    @property
    def last(self):
        """The model that was started last."""
        return self.started[-1]


class FakeWaiter:
    """Records its outcome; `order` is the place among all outcomes. A cancelled one accepts no grant."""

    orders = itertools.count()

    def __init__(self, *, cancelled=False):
        self.cancelled = cancelled
        self.model = None
        self.error = None
        self.order = None

    def grant(self, model):
        self._settle()
        if self.cancelled:
            return False
        self.model = model
        return True

    def reject(self, error):
        self._settle()
        self.error = error

    @property
    def settled(self):
        return self.order is not None

    def _settle(self):
        assert not self.settled, "settled twice"
        self.order = next(FakeWaiter.orders)


class Simulation:
    """A scheduler whose events happen `now`. `sizes`, `keep_alive` and `planned` are those of later requests."""

    def __init__(self, **config):
        self.effects = RecordedEffects()
        self.now = 0.0
        self.sizes = {}
        self.keep_alive = None
        self.planned = False
        self.scheduler = Scheduler(self.effects, SchedulerConfig(**config))

    def __getattr__(self, name):
        attribute = getattr(self.scheduler, name)
        return functools.partial(self._call, attribute) if name in _TIMED_EVENTS else attribute

    def _call(self, event, *args, **kwargs):
        return event(*args, now=self.now, **kwargs)

    def pass_time(self, seconds):
        """Let time pass, with a tick whenever one is due."""
        end = self.now + seconds
        while (due := self.scheduler.next_tick) is not None and due <= end:
            self.now = max(due, self.now)
            self.tick()
            assert self.scheduler.next_tick is None or self.scheduler.next_tick > self.now, "endless ticks"
        self.now = end

    def spec(self, key):
        return ModelSpec(key, self.sizes.get(key, 0), self.keep_alive, planned=self.planned)

    def request(self, key=A, *, ignore_backoff=False, **options):
        """Request a model with a new waiter."""
        waiter = FakeWaiter(**options)
        self.scheduler.request(self.spec(key), waiter, self.now, ignore_backoff=ignore_backoff)
        return waiter

    def unload(self, key=A, *, force=False):
        """Unload a model with a new waiter."""
        waiter = FakeWaiter()
        self.scheduler.unload(key, waiter, self.now, force=force)
        return waiter

    def load(self, key=A):
        """Load a model that is idle afterwards."""
        waiter = self.request(key)
        self.ready(self.model(key))
        self.release(waiter.model)
        return waiter.model

    def exit(self, key=A):
        """Let the worker of a model exit."""
        self.exited(self.model(key), CRASH)

    def model(self, key):
        (model,) = [model for model in self.scheduler.models if model.key == key]
        return model

    def states(self):
        return {model.key: model.state.value for model in self.scheduler.models}
