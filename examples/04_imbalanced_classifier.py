"""An imbalanced classifier with `focaldet.losses` alone: one eight to fifty other digits.

With so few examples both losses end alike; a detector meets a thousand times as many, and there it decides.

python examples/04_imbalanced_classifier.py
"""

import math

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from focaldet import losses

FORMS = {"cross entropy": losses.BinaryCrossEntropyLoss(), "focal loss": losses.BalancedFocalLoss(alpha=0.5, gamma=2.0)}
images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images, is_eight = images.float() / 16, digits == 8
writers = torch.arange(len(digits)) < 1287  # the last 510 are of other people
rare = ~is_eight | (torch.cumsum(is_eight, 0) % 5 == 0)  # of the eights to train with every fifth is kept
x, y = images[writers & rare], is_eight[writers & rare]

for name, loss in FORMS.items():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    torch.nn.init.constant_(model[2].bias, -math.log((1 - 0.01) / 0.01))  # the prior of section 3.3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(model(x)[:, 0], y).backward()
        optimizer.step()
    scores = model(images[~writers])[:, 0].sigmoid().detach()
    print(f"{name:14} average precision {average_precision_score(is_eight[~writers], scores):.3f}")
