"""Products and quotients with plain numbers, whose nodes of the graph have a single input."""

import pytest
import torch
from conftest import Net, assert_equal_diagonals, batch_of, hessian, linear

import pai_lib as pai

aten = torch.ops.aten
WITH_A_NUMBER = {
    "mul": lambda y: aten.mul.Scalar(y, 3.0),
    "div": lambda y: aten.div.Scalar(y, 3.0),
    "add": lambda y: aten.add.Scalar(y, 3.0),
    "python": lambda y: 2 * y / 3 - 1,
}


@pytest.mark.parametrize("operation", WITH_A_NUMBER.values(), ids=WITH_A_NUMBER)
def test_a_number_bends_nothing(operation):
    model = Net(lambda net, x: net.head(operation(net.body(x)).relu()), body=linear(), head=linear(4, 3))
    batch, names = batch_of(5, 4), ["body.weight", "body.bias", "head.weight"]
    assert_equal_diagonals(pai.exact_diag(model, batch, parameters=names), hessian(model, batch, names).diag())
