"""Calls that share what earlier ones had, warmed, and calls that share nothing, cold."""

import torch
from cases import both

from fusedact import dispatch

SHAPE = (2, 4, 6, 8)


def forget():
    dispatch._latest.clear()
    dispatch._shared.clear()


def data(dtype=torch.float32):
    return torch.randn(SHAPE, device="cuda", dtype=dtype), torch.randn(SHAPE, device="cuda", dtype=dtype)


def cold(call):
    """What `call` returns, or the type and text of its error, if nothing is shared."""
    forget()
    return outcome(call)


def outcome(call):
    torch.manual_seed(3)
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    results = map(torch.as_tensor, result) if isinstance(result, tuple) else [result]
    return type(result), *((type(r), r.stride(), r.detach().clone()) for r in results)


def assert_same(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        if isinstance(a, tuple):
            assert a[:2] == b[:2]
            torch.testing.assert_close(a[2], b[2], rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def warm(layer, x, dy):
    """Run the layer until forward and backward are shared."""
    for _ in range(3):
        both(layer, x, dy)
    assert dispatch._latest


def set_attribute(layer, name, value):
    setattr(layer, name, value)
    return layer


def within(context):
    def call(layer, x):
        with context():
            return layer(x)

    return call
