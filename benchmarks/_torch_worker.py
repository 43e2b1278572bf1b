"""A process with torch that `updates.py` takes turns with: reads a count, prints seconds a step."""

import json
import sys
import time

import torch

setting = json.loads(sys.argv[1])
name, arguments = setting["method"]
generator = torch.Generator().manual_seed(0)
size = setting["size"] // setting["leaves"]
params = [torch.randn(size, generator=generator) for _ in range(setting["leaves"])]
for param in params:
    param.grad = torch.randn(size, generator=generator)
optimizer = getattr(torch.optim, name)(params, foreach=True, **arguments)

for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        optimizer.step()
    print((time.perf_counter() - start) / int(line), flush=True)
