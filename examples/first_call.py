"""A first call: the loss, its gradient and the IoU of pairs of boxes; and what the server says to a wrong box.

Run it with `python examples/first_call.py [HOST:PORT]`; without an address, a server starts inside the process.
"""

import sys

import boxloss

predictions = [[0, 0, 4, 4], [2, 2, 6, 5], [0, 0, 2, 2]]  # Left, top, right, bottom; arrays and torch tensors too.
targets = [[0, 0, 4, 4], [1, 2, 5, 8], [5, 5, 8, 8]]

client = boxloss.Client(sys.argv[1]) if len(sys.argv) > 1 else boxloss.embedded()
with client:
    result = client.evaluate(predictions, targets, boxloss.CIoU(), gradients=True)
    print("IoU ", result.iou)
    print("loss", result.loss)
    print("gradient, with respect to the predictions:")
    print(result.gradient)

    try:
        client.evaluate([[4, 0, 0, 4]], [[0, 0, 4, 4]], boxloss.CIoU())  # Its left is right of its right.
    except boxloss.InvalidInputError as error:
        print(error)
