import pickle

from detectron2.utils.serialize import PicklableWrapper


def test_lambdas_travel():
    offset = 3
    wrapped = PicklableWrapper(lambda x: x + offset)
    assert pickle.loads(pickle.dumps(wrapped))(4) == 7


def test_attributes_go_through():
    class Local:
        size = 5

    wrapped = PicklableWrapper(PicklableWrapper(Local()))
    assert wrapped.size == 5 and isinstance(wrapped._obj, Local)
    assert pickle.loads(pickle.dumps(wrapped)).size == 5
