"""Stand-ins for names whose dependency is not installed."""


def create_dummy_class(klass, dependency, message=""):
    """A class called ``klass`` that raises ImportError, naming ``dependency``, when constructed or asked for anything.

    Args:
        klass (str): the name.
        dependency (str or list of str): what is not installed.
        message (str): replaces the explanation.
    """
    explanation = message or _explain(klass, dependency)

    class _Type(type):
        def __getattr__(cls, name):
            raise ImportError(explanation)

    class _Dummy(metaclass=_Type):
        def __init__(self, *args, **kwargs):
            raise ImportError(explanation)

    _Dummy.__name__ = _Dummy.__qualname__ = klass
    return _Dummy


def create_dummy_func(func, dependency, message=""):
    """A function called ``func`` that raises ImportError, naming ``dependency``, when called; arguments as above."""
    explanation = message or _explain(func, dependency)

    def _dummy(*args, **kwargs):
        raise ImportError(explanation)

    _dummy.__name__ = _dummy.__qualname__ = func
    return _dummy


def _explain(name, dependency):
    wanted = dependency if isinstance(dependency, str) else ", ".join(dependency)
    return f"{name} needs {wanted}, which cannot be imported here."
