"""Sending what pickle refuses, such as lambdas, to another process."""
import cloudpickle


class PicklableWrapper:
    """Holds any object that cloudpickle can store and behaves like it: calls and attributes go through."""

    def __init__(self, obj):
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self):
        return _restore, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, attr):
        if attr == "_obj":  # asked for before __init__ ran: looking it up here would never end
            raise AttributeError(attr)
        return getattr(self._obj, attr)


def _restore(pickled: bytes) -> PicklableWrapper:
    return PicklableWrapper(cloudpickle.loads(pickled))
